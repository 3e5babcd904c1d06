"""A dictionary while it is learnt: its tensors, what it misses, and what it becomes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer.features import ByPursuit, Dictionary, Own, Pass, Sparsifier, by_places, said, spoken
from fewer.layout import Codes

from .known import Known
from .pupil import Lesson, Pupil
from .sharing import ALONE, Sharing

Rows = Float[Tensor, "n dim"]
RECENT = 0.99  # of how often a latent speaks, what a batch leaves of what was known before


class One:
    """Tensors by name, `own_*` being what the sparsifier learns; `silent` and `share` are not learnt.

    The tokens since each latent spoke, and, for sparsifiers that ask for it, in which share of the recent tokens it did. Where
    processes share latents, each holds its own.
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
            **{f"own_{name}": t for name, t in pupil.sparsifier.begin(pupil.latents, pupil.budget).items()},
        }
        device = known.mean.device
        self.tensors = {name: t.to(device).requires_grad_() for name, t in by.mine(tensors).items()}
        self.tensors["silent"] = torch.zeros(len(self.tensors["encoder"]), device=device)
        m = pupil.sparsifier
        self.shares = type(m).idle is not Sparsifier.idle
        if self.shares:
            self.tensors["share"] = torch.zeros(pupil.latents, device=device)
        self.dead_after = lesson.dead_after or min(10_000_000, lesson.steps * batch // 10)
        self.spare = -1  # tokens for which none can have died yet; below 0, one must look
        self.aux_latents = lesson.aux_latents or max(1, d_in // 2)
        if m.looks and (lesson.skip or pupil.reads != pupil.writes):
            raise ValueError(
                f"{m.name} compares what is read with the decoder's atoms: read and write the same, no skip"
            )
        self.sparse = by_places(m) and type(m).penalty is Sparsifier.penalty and not m.looks

    @property
    def rows(self) -> tuple[str, ...]:
        """The matrices whose gradients are known as who used which row."""
        return ("encoder", "decoder") if self.sparse else ()

    @property
    def own(self) -> dict[str, Tensor]:
        return {name[4:]: t for name, t in self.tensors.items() if name.startswith("own_")}

    def loss(self, rows: Rows, progress: float) -> Tensor:
        """The share of the variance that is missed, with what the sparsifier adds, and the dead's share of the rest."""
        t, m, x = self.tensors, self.pupil.sparsifier, self._read(rows)
        target = self.known.of_sites(rows, self.pupil.writes)
        beside = target if "skip" not in t else target - F.linear(x, t["skip"])
        if self.sparse:
            codes = self._codes(x)
            found, error = self.by.missed(codes, m.views(codes), t["decoder"], beside, t["decoder_bias"])
        else:
            pre, z = self._dense(x)
            error = beside - t["decoder_bias"] - z @ t["decoder"]
            seen = Pass(x, target, pre, z, t["decoder"], t["decoder_bias"], progress)
            found = error.square().mean() + m.penalty(seen, self.pupil.budget, self._owned(x))
        return found + self.of_the_dead(rows, error.detach())

    def says(self, rows: Rows) -> Float[Tensor, "n out"]:
        """What is said of what is read; who spoke is counted."""
        return self.told(rows, 0.0)[0]

    def told(self, rows: Rows, progress: float) -> tuple[Float[Tensor, "n out"], Float[Tensor, ""]]:
        """What is said of what is read, and what the sparsifier adds to a loss; who spoke is counted."""
        x, t, m = self._read(rows), self.tensors, self.pupil.sparsifier
        skipped = F.linear(x, t["skip"]) if "skip" in t else 0
        if self.sparse:
            z = self.by.added(spoken(self._codes(x), t["decoder"]))
            return z + t["decoder_bias"] + skipped, rows.new_zeros(())
        pre, z = self._dense(x)
        target = self.known.of_sites(rows, self.pupil.writes)
        seen = Pass(x, target, pre, z, t["decoder"], t["decoder_bias"], progress)
        cost = m.penalty(seen, self.pupil.budget, self._owned(x))
        return z @ t["decoder"] + t["decoder_bias"] + skipped, cost

    def _codes(self, x: Tensor) -> Codes:
        """Who speaks, and how loud."""
        t, p, n = self.tensors, self.pupil, len(self.tensors["encoder"])
        codes = self.by.coded(p.sparsifier, p.budget, x, t["encoder"], t["encoder_bias"], self.own)  # type: ignore[arg-type]
        loud = torch.where(codes.value != 0, codes.index, n).flatten()  # empty slots point behind the last
        heard = torch.zeros(n + 1, device=x.device)
        one = heard.new_ones(()).expand_as(loud)
        self._heard((heard.scatter_add_(0, loud, one) if self.shares else heard.scatter_(0, loud, one))[:n], len(x))
        return codes

    def _dense(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All pre-activations, and all codes; one that pursues has no encoder."""
        t, p = self.tensors, self.pupil
        blind = isinstance(p.sparsifier, ByPursuit)
        pre = x.new_zeros(()).expand(len(x), p.latents) if blind else F.linear(x, t["encoder"], t["encoder_bias"])
        z = p.sparsifier.code(pre, p.budget, self._owned(x))
        self._heard((z != 0).sum(0), len(x))
        return pre, z

    def _owned(self, x: Tensor) -> Own:
        """What the sparsifier knows: what it has learnt, and what it sees of these inputs if it looks."""
        t, m = self.tensors, self.pupil.sparsifier
        return {**self.own, **m.look(x - t["decoder_bias"], t["decoder"])} if m.looks else self.own

    def _read(self, rows: Rows) -> Tensor:
        return self.known.of_sites(rows, self.pupil.reads)

    def _heard(self, counts: Tensor, tokens: int) -> None:
        """Who spoke, and, if it matters, in how many of `tokens` tokens."""
        counts, tokens = self.by.heard(counts, tokens)
        self.tensors["silent"].add_(tokens).masked_fill_(counts > 0, 0)
        if self.shares:
            self.tensors["share"].mul_(RECENT).add_(counts / tokens, alpha=1 - RECENT)
        self.spare -= tokens

    def _idle(self) -> tuple[Tensor, int]:
        """Who is taught by what the others leave over, of the latents that are here, and how many there are in all.

        Nobody, for a while, if nobody can have died since the last look.
        """
        m, silent = self.pupil.sparsifier, self.tensors["silent"]
        if not self.lesson.aux or isinstance(m, ByPursuit) or (self.spare >= 0 and not self.shares):
            return silent.new_zeros(0, dtype=torch.long), 0
        idle = m.idle(silent, self.tensors.get("share", silent), self.dead_after).nonzero()[:, 0]  # a GPU is waited for
        if not (every := self.by.number(len(idle))):
            self.spare = self.dead_after - int(self.by.most(silent.max().item()))
        return idle, every

    def of_the_dead(self, rows: Rows, error: Float[Tensor, "n out"]) -> Tensor:
        """How much of `error` the loudest of the dead miss; their pre-activations count as they are, also below zero."""
        dead, every = self._idle()
        if not every:
            return rows.new_zeros(())
        x, t, k = self._read(rows), self.tensors, min(self.aux_latents, every)
        with torch.no_grad():
            value, at, here = self.by.loudest(F.linear(x, t["encoder"][dead], t["encoder_bias"][dead]), k)
        index = dead[at]
        z = said(x, t["encoder"], t["encoder_bias"], index, value)
        z = z if here is None else torch.where(here, z, 0.0)
        rest = error - self.by.added(spoken(Codes(index, z, len(t["encoder"])), t["decoder"]))
        return self.lesson.aux * rest.square().mean() / self.by.mean(error.square().mean()).clamp(min=1e-12)

    def done(self, held: Rows, about: Mapping[str, Any], others: Sequence[Sequence[str]]) -> Dictionary:
        """The dictionary, as plain activations want it: mean and scales are folded in.

        What it shares with `others`, by what they write, adds up: the mean of a site is said by the first who writes it.
        """
        t, p, k = self.by.whole({name: t.detach() for name, t in self.tensors.items()}), self.pupil, self.known
        mean, scale = k.of_sites(k.mean, p.reads), k.of_sites(k.scale, p.reads)
        scale_out, taken = k.of_sites(k.scale, p.writes), {name for names in others for name in names}
        first = {name: torch.zeros_like(k.mean[at]) if name in taken else k.mean[at] for name, at in k.sites.items()}
        own = {name: tensor.detach() for name, tensor in self.own.items()}
        if type(p.sparsifier).settle is not Sparsifier.settle:
            x = self._read(held)
            with torch.no_grad():
                pre = F.linear(x, t["encoder"], t["encoder_bias"])
                own |= p.sparsifier.settle(pre, p.budget, {**self._owned(x), **own})
        encoder = (t["decoder"] if isinstance(p.sparsifier, ByPursuit) else t["encoder"]) / scale
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
