"""Bytes of weights that a token really reads, when it multiplies a part of what there is."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from .estimate import Estimate, Score, mean


@dataclass(frozen=True)
class Reading:
    """One map, or several, whose columns (or rows) are read where a token needs them.

    `bytes` is what a token reads of the dense map, scales and all; `always` what it reads whatever is kept, such as a
    predictor or a low-rank part.
    """

    density: Estimate
    bytes: float | int
    always: float | int = 0

    @property
    def read(self) -> Score:
        """Bytes a token reads. Lower is better."""
        d = self.density
        low, value, high = (self.always + x * self.bytes for x in (d.low, d.value, d.high))
        return Score("bytes a token", Estimate(value, low, high, d.n), higher_is_better=False)


def reads(
    density: Estimate, rows: int, cols: int, dtype: torch.dtype, always: float | int = 0, scales: int = 0
) -> Reading:
    """What a map of rows x cols stored as `dtype` reads at a density, with `scales` float32 scales in all.

    >>> import torch
    >>> half = Estimate(0.5, 0.4, 0.6, 8)
    >>> reads(half, 4, 8, torch.bfloat16, always=10).read.value  # 10 + half of 4 * 8 * 2
    42.0
    """
    return Reading(density, rows * cols * dtype.itemsize + 4 * scales, always)


def total(parts: Iterable[Reading]) -> Score:
    """Bytes a token reads of all of them. The widths of intervals are added up: those of layers hang together."""
    each = [part.read.estimate for part in parts]
    if not each:
        raise ValueError("no map: give at least one to read")
    value, low, high = (sum(getattr(e, name) for e in each) for name in ("value", "low", "high"))
    return Score("bytes a token", Estimate(value, low, high, min(e.n for e in each)), higher_is_better=False)


def union_density(keep: Bool[Tensor, "steps batch neurons"]) -> Score:
    """The share of columns that a batch reads in one step: what any of its tokens needs is read once for all. Lower is better.

    >>> union_density(torch.tensor([[[True, False, False, False], [False, True, False, False]]])).value
    0.5
    """
    each = keep.any(1).double().mean(-1)
    return Score("density of the union", mean(each), higher_is_better=False)
