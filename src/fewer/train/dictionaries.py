"""Learning dictionaries: many at once from one stream of activations, each with its own latents, sparsifier and budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer.core import Budget
from fewer.features import ByKeep, Dictionary, Pass, Sparsifier, said, spell, spoken
from fewer.layout import Codes

from .kept import Kept
from .known import Known
from .loop import Told, Training, train
from .rate import Trapezoid
from .rows import RowAdam
from .source import Source

FIRST = 16  # batches from which mean and scale are taken
HELD = 8  # batches after the last that training sees, for what inference needs
RATE = 0.05  # of the entries of a row of length one, which are about 1 / sqrt(dim)
WARM = 0.02  # the share of the run in which the rate rises


@dataclass(frozen=True)
class Pupil:
    """One dictionary to learn. `seed` is of its first directions."""

    sparsifier: Sparsifier
    budget: Budget
    latents: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.latents < 1:
            raise ValueError(f"latents={self.latents}: ask for at least 1")
        if isinstance(self.budget.keep, int) and not self.budget.group and self.budget.keep > self.latents:
            raise ValueError(f"budget '{self.budget}' of {self.latents} latents: keep at most {self.latents}")


@dataclass(frozen=True)
class Lesson:
    """How dictionaries are learnt: Adam, the decoder's rows at length 1, dead latents taught by what the others leave over.

    The rate is 0.05 / sqrt(dim) unless given, a twentieth of the entries of a row of length one, and falls to 0 over the last
    fifth: with a fifth of it a dictionary of a few hundred steps misses half as much again (docs/LOG.md).
    A latent is dead that has been silent for `dead_after` tokens, by default 1/10 of the run and at most 10 million. `aux`
    weighs the share of what the living leave over that `aux_latents` of the dead (by default dim / 2) miss (Gao et al. 2024,
    2406.04093, A.2).
    """

    steps: int = 2000
    rate: float | None = None
    aux: float = 1 / 32
    aux_latents: int | None = None
    dead_after: int | None = None
    skip: bool = False
    seed: int = 0
    half: bool = True
    save_after: float = 60.0


def learn(
    pupils: Sequence[Pupil],
    source: Source,
    lesson: Lesson = Lesson(),
    reads: Sequence[str] = (),
    writes: Sequence[str] = (),
    widths: Sequence[int] | None = None,
    out: str | Path | None = None,
    told: Told | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> list[Dictionary]:
    """Dictionaries that read the columns of `reads` and write those of `writes`; without `writes`, all and the same.

    `widths` are the columns of each site, reads before writes, as they stand side by side in a batch; one site needs none.

    With `out`, the state lies in `OUT.partial` and a killed run goes on to the bit; each step is a line of `OUT.jsonl`.
    Activations are seen about their mean and scaled, each site, to E|x|^2 = dim; what comes back reads and writes plain ones.
    """
    first = [batch for batch, _ in zip(source, range(FIRST), strict=False)]
    known = Known.of(torch.cat(first), widths or [first[0].shape[1]], len(reads) if writes else None)
    several = [_One(i, pupil, known, lesson, len(first[0])) for i, pupil in enumerate(pupils)]
    parameters = {f"{one.number}/{name}": t for one in several for name, t in one.tensors.items()}
    matrices = [f"{one.number}/{name}" for one in several for name in one.rows]
    units = [f"{one.number}/decoder" for one in several]
    optimizer = RowAdam(parameters, matrices, units)

    def loss(batch: Tensor, progress: float) -> Tensor:
        x, y = known.seen(batch)
        return torch.stack([one.loss(x, y, progress) for one in several]).sum()

    rate = lesson.rate or RATE / math.sqrt(first[0].shape[1])
    how = Training(
        lesson.steps,
        Trapezoid(rate, WARM),
        clip=math.inf,
        seed=lesson.seed,
        half=lesson.half,
        save_after=lesson.save_after,
    )
    kept = (
        Kept(
            out,
            f"{pupils} {replace(lesson, save_after=0.0)} {known.mean.double().sum().item()!r} {tuple(reads)} {tuple(writes)} {widths}",
        )
        if out
        else None
    )
    train(parameters, loss, source, how, kept, told, optimizer)
    held = [known.seen(batch)[0] for batch, _ in zip(source.since(lesson.steps), range(HELD), strict=False)]
    told_of = {**about, "tokens": lesson.steps * len(first[0])}
    return [one.done(torch.cat(held), tuple(reads), tuple(writes) or tuple(reads), told_of) for one in several]


class _One:
    """A dictionary while it is learnt."""

    def __init__(self, number: int, pupil: Pupil, known: Known, lesson: Lesson, batch: int):
        self.number, self.pupil, self.known, self.lesson = number, pupil, known, lesson
        device = known.mean.device
        draw = torch.Generator().manual_seed(pupil.seed)
        d_in, d_out = (len(t) for t in known.sides(known.mean))
        first = F.normalize(torch.randn(pupil.latents, max(d_in, d_out), generator=draw), dim=1)
        self.tensors = {
            "encoder": F.normalize(first[:, :d_in], dim=1).contiguous(),
            "encoder_bias": torch.zeros(pupil.latents),
            "decoder": F.normalize(first[:, :d_out], dim=1).contiguous(),
            "decoder_bias": torch.zeros(d_out),
            **({"skip": torch.zeros(d_out, d_in)} if lesson.skip else {}),
            **{f"own_{name}": t for name, t in pupil.sparsifier.begin(pupil.latents).items()},
        }
        self.tensors = {name: t.to(device).requires_grad_() for name, t in self.tensors.items()}
        self.tensors["silent"] = torch.zeros(pupil.latents, device=device)  # tokens since each latent spoke
        self.dead_after = lesson.dead_after or min(10_000_000, lesson.steps * batch // 10)
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

    def loss(self, x: Tensor, y: Tensor, progress: float) -> Tensor:
        """The share of the variance that is missed, with what the sparsifier adds, and the dead's share of the rest."""
        found, error = self._sparsely(x, y) if self.sparse else self._densely(x, y, progress)
        return found + self._of_the_dead(x, error)

    def _sparsely(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        t, p = self.tensors, self.pupil
        codes, _ = spell(p.sparsifier, p.budget, x, t["encoder"], t["encoder_bias"], self.own)  # type: ignore[arg-type]
        self._heard(codes.index[codes.value > 0] if codes.value.min() >= 0 else codes.index[codes.value != 0], len(x))
        base = self._base(x, y)
        total, error = x.new_zeros(()), y
        for weight, part in p.sparsifier.views(codes):
            error = base - spoken(part, t["decoder"])
            total = total + weight * error.square().mean()
        return total, error.detach()

    def _densely(self, x: Tensor, y: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        t, p = self.tensors, self.pupil
        pre = F.linear(x, t["encoder"], t["encoder_bias"])
        z = p.sparsifier.code(pre, p.budget, self.own)
        self._heard((z != 0).any(0).nonzero()[:, 0], len(x))
        error = self._base(x, y) - z @ t["decoder"]
        seen = Pass(x, y, pre, z, t["decoder"], t["decoder_bias"], progress)
        return error.square().mean() + p.sparsifier.penalty(seen, p.budget, self.own), error.detach()

    def _base(self, x: Tensor, y: Tensor) -> Tensor:
        """What is left for the latents to say."""
        t = self.tensors
        return y - t["decoder_bias"] - (F.linear(x, t["skip"]) if "skip" in t else 0)

    def _heard(self, latents: Tensor, tokens: int) -> None:
        self.tensors["silent"].add_(tokens).index_fill_(0, latents, 0)

    def _of_the_dead(self, x: Tensor, error: Tensor) -> Tensor:
        """How much of `error` the loudest of the dead miss; their pre-activations count as they are, also below zero."""
        dead = (self.tensors["silent"] > self.dead_after).nonzero()[:, 0]
        if not self.lesson.aux or not len(dead):
            return x.new_zeros(())
        t, k = self.tensors, min(self.aux_latents, len(dead))
        with torch.no_grad():
            pre = F.linear(x, t["encoder"][dead], t["encoder_bias"][dead])
            value, at = pre.topk(k, dim=1, sorted=False)
        index = dead[at]
        z = said(x, t["encoder"], t["encoder_bias"], index, value)
        missed = error - spoken(Codes(index, z, len(t["encoder"])), t["decoder"])
        return self.lesson.aux * missed.square().mean() / error.square().mean().clamp(min=1e-12)

    def done(
        self, held: Float[Tensor, "n in"], reads: tuple[str, ...], writes: tuple[str, ...], about: Mapping[str, Any]
    ) -> Dictionary:
        """The dictionary, as plain activations want it: mean and scales are folded in."""
        t = {name: tensor.detach() for name, tensor in self.tensors.items()}
        p, (mean, mean_out), (scale, scale_out) = (
            self.pupil,
            self.known.sides(self.known.mean),
            self.known.sides(self.known.scale),
        )
        own = {name: tensor.detach() for name, tensor in self.own.items()}
        with torch.no_grad():
            own |= p.sparsifier.settle(F.linear(held, t["encoder"], t["encoder_bias"]), p.budget, own)
        encoder = t["encoder"] / scale
        skip = t["skip"] * scale_out[:, None] / scale if "skip" in t else None
        bias = t["decoder_bias"] * scale_out + mean_out
        about = {**about, "seed": p.seed, "dead": int((t["silent"] > self.dead_after).sum())}
        return Dictionary(
            p.sparsifier,
            p.budget,
            encoder,
            t["encoder_bias"] - encoder @ mean,
            t["decoder"] * scale_out,
            bias if skip is None else bias - skip @ mean,
            own,
            skip,
            reads,
            writes,
            about,
        )
