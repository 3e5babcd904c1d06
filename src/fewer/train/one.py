"""A dictionary while it is learnt: its tensors, what it misses, and what it becomes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer.features import ByKeep, Dictionary, Pass, Sparsifier, said, spoken
from fewer.layout import Codes

from .known import Known
from .pupil import Lesson, Pupil
from .sharing import ALONE, Sharing

Rows = Float[Tensor, "n dim"]


class One:
    """Tensors by name, `own_*` being what the sparsifier learns; `silent`, the tokens since each latent spoke, is not learnt.

    Where processes share latents, each holds its own.
    """

    def __init__(self, pupil: Pupil, known: Known, lesson: Lesson, batch: int, by: Sharing = ALONE):
        self.pupil, self.known, self.lesson, self.by = pupil, known, lesson, by
        draw = torch.Generator().manual_seed(pupil.seed)
        d_in, d_out = (len(known.of_sites(known.mean, names)) for names in (pupil.reads, pupil.writes))
        first = F.normalize(torch.randn(pupil.latents, max(d_in, d_out), generator=draw), dim=1)
        tensors = {
            "encoder": F.normalize(first[:, :d_in], dim=1).contiguous(),
            "encoder_bias": torch.zeros(pupil.latents),
            "decoder": F.normalize(first[:, :d_out], dim=1).contiguous(),
            "decoder_bias": torch.zeros(d_out),
            **({"skip": torch.zeros(d_out, d_in)} if lesson.skip else {}),
            **{f"own_{name}": t for name, t in pupil.sparsifier.begin(pupil.latents).items()},
        }
        device = known.mean.device
        self.tensors = {name: t.to(device).requires_grad_() for name, t in by.mine(tensors).items()}
        self.tensors["silent"] = torch.zeros(len(self.tensors["encoder"]), device=device)
        self.dead_after = lesson.dead_after or min(10_000_000, lesson.steps * batch // 10)
        self.spare = -1  # tokens for which none can have died yet; below 0, one must look
        self.aux_latents = lesson.aux_latents or max(1, d_in // 2)
        m = pupil.sparsifier
        self.sparse = isinstance(m, ByKeep) and type(m).penalty is Sparsifier.penalty

    @property
    def rows(self) -> tuple[str, ...]:
        """The matrices whose gradients are known as who used which row."""
        return ("encoder", "decoder") if self.sparse else ()

    @property
    def own(self) -> dict[str, Tensor]:
        return {name[4:]: t for name, t in self.tensors.items() if name.startswith("own_")}

    def loss(self, rows: Rows, progress: float) -> Tensor:
        """The share of the variance that is missed, with what the sparsifier adds, and the dead's share of the rest."""
        target = self.known.of_sites(rows, self.pupil.writes)
        if not self.sparse:
            return self._densely(rows, target, progress)
        if type(self.pupil.sparsifier).views is Sparsifier.views:  # the codes are looked at once, and whole
            x, t = self._read(rows), self.tensors
            target = target - F.linear(x, t["skip"]) if "skip" in t else target
            found, error = self.by.left(self._spelt(x), t["decoder"], target, t["decoder_bias"])
            return found + self.of_the_dead(rows, error)
        total, error = rows.new_zeros(()), target
        for weight, out in self.views(rows):
            error = target - out
            total = total + weight * error.square().mean()
        return total + self.of_the_dead(rows, error.detach())

    def views(self, rows: Rows) -> list[tuple[float, Tensor]]:
        """What is said of what is read, in the ways that must each be near, with their weights; who spoke is counted."""
        x, t, p = self._read(rows), self.tensors, self.pupil
        if not self.sparse:
            z = p.sparsifier.code(F.linear(x, t["encoder"], t["encoder_bias"]), p.budget, self.own)
            self._heard((z != 0).any(0), len(x))
            return [(1.0, z @ t["decoder"] + self._beside(x))]
        beside = self._beside(x)
        return [
            (weight, self.by.added(spoken(part, t["decoder"])) + beside)
            for weight, part in p.sparsifier.views(self._spelt(x))
        ]

    def _spelt(self, x: Tensor) -> Codes:
        """Who speaks, and how loud; who spoke is counted."""
        t, p, n = self.tensors, self.pupil, len(self.tensors["encoder"])
        codes = self.by.coded(p.sparsifier, p.budget, x, t["encoder"], t["encoder_bias"], self.own)  # type: ignore[arg-type]
        loud = torch.where(codes.value != 0, codes.index, n).flatten()  # empty slots point behind the last
        self._heard(torch.zeros(n + 1, dtype=torch.bool, device=x.device).scatter_(0, loud, True)[:n], len(x))
        return codes

    def _densely(self, rows: Rows, target: Tensor, progress: float) -> Tensor:
        x, t, p = self._read(rows), self.tensors, self.pupil
        pre = F.linear(x, t["encoder"], t["encoder_bias"])
        z = p.sparsifier.code(pre, p.budget, self.own)
        self._heard((z != 0).any(0), len(x))
        error = target - z @ t["decoder"] - self._beside(x)
        seen = Pass(x, target, pre, z, t["decoder"], t["decoder_bias"], progress)
        added = p.sparsifier.penalty(seen, p.budget, self.own)
        return error.square().mean() + added + self.of_the_dead(rows, error.detach())

    def _read(self, rows: Rows) -> Tensor:
        return self.known.of_sites(rows, self.pupil.reads)

    def _beside(self, x: Tensor) -> Tensor:
        """What is said without any latent."""
        t = self.tensors
        return t["decoder_bias"] + (F.linear(x, t["skip"]) if "skip" in t else 0)

    def _heard(self, loud: Tensor, tokens: int) -> None:
        loud, tokens = self.by.heard(loud, tokens)
        self.tensors["silent"].add_(tokens).masked_fill_(loud > 0, 0)
        self.spare -= tokens

    def of_the_dead(self, rows: Rows, error: Float[Tensor, "n out"]) -> Tensor:
        """How much of `error` the loudest of the dead miss; their pre-activations count as they are, also below zero."""
        if not self.lesson.aux or self.spare >= 0:
            return rows.new_zeros(())
        dead = (self.tensors["silent"] > self.dead_after).nonzero()[:, 0]  # from here on the host waits for a GPU
        if not (every := self.by.number(len(dead))):
            self.spare = self.dead_after - int(self.by.most(self.tensors["silent"].max().item()))
            return rows.new_zeros(())
        x, t, k = self._read(rows), self.tensors, min(self.aux_latents, every)
        with torch.no_grad():
            value, at, here = self.by.loudest(F.linear(x, t["encoder"][dead], t["encoder_bias"][dead]), k)
        index = dead[at]
        z = said(x, t["encoder"], t["encoder_bias"], index, value)
        z = z if here is None else torch.where(here, z, 0.0)
        missed = error - self.by.added(spoken(Codes(index, z, len(t["encoder"])), t["decoder"]))
        return self.lesson.aux * missed.square().mean() / self.by.mean(error.square().mean()).clamp(min=1e-12)

    def done(self, held: Rows, about: Mapping[str, Any], others: Sequence[Sequence[str]]) -> Dictionary:
        """The dictionary, as plain activations want it: mean and scales are folded in.

        What it shares with `others`, by what they write, adds up: the mean of a site is said by the first who writes it.
        """
        t, p, k = self.by.whole({name: t.detach() for name, t in self.tensors.items()}), self.pupil, self.known
        mean, scale = k.of_sites(k.mean, p.reads), k.of_sites(k.scale, p.reads)
        scale_out, taken = k.of_sites(k.scale, p.writes), {name for names in others for name in names}
        first = {name: torch.zeros_like(k.mean[at]) if name in taken else k.mean[at] for name, at in k.sites.items()}
        own = {name: tensor.detach() for name, tensor in self.own.items()}
        with torch.no_grad():
            own |= p.sparsifier.settle(F.linear(self._read(held), t["encoder"], t["encoder_bias"]), p.budget, own)
        encoder = t["encoder"] / scale
        skip = t["skip"] * scale_out[:, None] / scale if "skip" in t else None
        bias = t["decoder_bias"] * scale_out + torch.cat([first[name] for name in p.writes])
        return Dictionary(
            p.sparsifier,
            p.budget,
            encoder,
            t["encoder_bias"] - encoder @ mean,
            t["decoder"] * scale_out,
            bias if skip is None else bias - skip @ mean,
            own,
            skip,
            p.reads,
            p.writes,
            {**about, "seed": p.seed, "dead": int((t["silent"] > self.dead_after).sum())},
        )
