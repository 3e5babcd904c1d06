"""How units leave one group of coupled maps: choose, refit what reads them, write zeros, and say what it cost."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core import Budget, Change, Group, Site
from fewer.weights import Corrector, Coupled, Part, Pruned, Slimmer

from ._act import _error, _in


@dataclass(frozen=True)
class Slimmed:
    """What is kept of a group: which units, and how many bytes their weights are."""

    keep: Bool[Tensor, " units"]
    bytes: int
    beside: tuple[()] = ()  # nothing is added to them

    def to(self, device: str) -> "Slimmed":
        """The same, there."""
        return replace(self, keep=self.keep.to(device))


@torch.no_grad()
def act(
    slimmer: Slimmer,
    correctors: Sequence[Corrector],
    group: Group,
    budget: Budget,
    stats: Mapping[str, Stats],
    dtype: torch.dtype | None = None,
) -> tuple[Change, Slimmed]:
    """Put zeros, in place, where units leave, and return what changed and which units stay.

    Biases stay: what reads a unit that left has zeros for it, so the masked model says what the smaller one will.
    Correctors work on the reader, whose columns stay or go whole. `stats` are those of every map, by site name.
    ValueError, naming the group: weights that are not finite, a corrector that adds a low-rank part or cannot work
    with whole columns.
    """
    start, dtype = time.perf_counter(), dtype or group.reader.tensor.dtype
    coupled = Coupled(group.units, tuple(_part(s, stats) for s in group.writers), _part(group.reader, stats))
    w, count = coupled.reader.weight, slimmer.width(budget, group.units)
    try:
        keep, new = slimmer.slim(coupled, count)
        columns = coupled.columns(keep)
        units = Budget(int(keep.sum()), unit=(w.shape[0], w.shape[1] // group.units))
        pruned = Pruned(new * columns, columns.expand_as(w), units)
        for corrector in correctors:
            pruned = corrector.correct(w, pruned, stats[group.reader.name])
        extra = pruned.low_rank or pruned.around or pruned.grid or pruned.bias is not None
        if extra or not torch.equal(pruned.keep, columns.expand_as(w)):
            raise ValueError("a slimmed map keeps whole columns and nothing beside them: leave this corrector out")
    except ValueError as wrong:
        raise ValueError(f"{group.name}: {wrong}") from None
    pruned = _in(dtype, replace(pruned, keep=pruned.keep.clone()))
    error = _error(w, pruned, stats[group.reader.name])  # before anything is written: `w` may be the parameter
    for site, part in zip(group.writers, coupled.writers, strict=True):
        rows = keep.repeat_interleave(part.weight.shape[0] // group.units)
        site.write((part.weight * rows[:, None]).to(dtype))
    group.reader.write(pruned.weight)
    size = sum(part.weight.numel() for part in (*coupled.writers, coupled.reader))
    kept = int(keep.sum()) / group.units
    stored = Slimmed(keep.cpu(), round(size * kept) * dtype.itemsize)
    change = Change(
        site=group.name,
        step=" + ".join(m.name for m in (slimmer, *correctors)),
        budget=str(budget),
        kept=kept,
        bytes_before=size * dtype.itemsize,
        bytes_after=stored.bytes,
        layout="smaller",
        error=error,
        seconds=time.perf_counter() - start,
    )
    return change, stored


def _part(site: Site, stats: Mapping[str, Stats]) -> Part:
    w = site.read().float()
    if not w.isfinite().all():
        raise ValueError(f"{site.name}: NaN or infinite weights; is the checkpoint whole?")
    return Part(site.role, w, stats[site.name])
