"""weights: which entries of a linear map stay.

A step on this axis is a pruner, perhaps an allocator before it and correctors after it:
`weights/wanda 50% by owl + dsnot + eora(rank=16) @ *.mlp.*`.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core import Budget, Method, Site
from fewer.layout import Grid, put_around
from fewer.select import divide, select

__all__ = [
    "Allocator",
    "ByScore",
    "ByUnit",
    "ByWeight",
    "Corrector",
    "Coupled",
    "Keep",
    "Learnt",
    "Part",
    "Pruned",
    "Pruner",
    "Quantiser",
    "Share",
    "Slimmer",
    "Units",
    "Weight",
]

Weight = Float[Tensor, "out in"]
Keep = Bool[Tensor, "out in"]
Units = Bool[Tensor, " units"]


@dataclass(frozen=True)
class Pruned:
    """What is left of a map: the survivors (zero where pruned), where they are, by which budget; and what is dense.

    `around` are the blocks of block-diagonal A and B with A weight B in place of `weight`; `low_rank` is added to that;
    `bias` is added to the outputs, on top of the module's own. `grid`, if a quantiser has been here, is where the survivors
    lie: whoever comes after it must not move them.
    """

    weight: Weight
    keep: Keep
    budget: Budget
    low_rank: tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]] | None = None
    around: tuple[Float[Tensor, "n b b"], Float[Tensor, "m c c"]] | None = None
    bias: Float[Tensor, " out"] | None = None
    grid: Grid | None = None

    def dense(self) -> Weight:
        """The map that will act: survivors with what is around them, plus the low-rank part, both done in float32."""
        w = self.weight
        if self.around is not None:
            w = put_around(w.float(), *(blocks.float() for blocks in self.around))
        if self.low_rank is None:
            return w
        left, right = self.low_rank
        return w.float() + left.float() @ right.float()

    @property
    def beside(self) -> tuple[Tensor, ...]:
        """All that is dense and small."""
        return (*(self.around or ()), *(self.low_rank or ()), *(() if self.bias is None else (self.bias,)))


class Pruner(Method):
    """Decides what stays."""

    @abstractmethod
    def prune(self, w: Weight, budget: Budget, stats: Stats) -> tuple[Weight, Keep]:
        """The weights to store (zero where pruned) and True where one stays."""


class ByScore(Pruner):
    """Rank, select, zero. Most pruners give `score` alone; joint budgets (`per model`) rank by it too."""

    @abstractmethod
    def score(self, w: Weight, stats: Stats) -> Weight:
        """Higher stays."""

    def prune(self, w: Weight, budget: Budget, stats: Stats) -> tuple[Weight, Keep]:
        keep = select(self.score(w, stats), budget)
        return w * keep, keep


class Learnt(Method):
    """Decides what stays by what was learnt of each map before, and kept in a file; the weights stay what they are."""

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Where it is kept: a result depends on what is in there."""

    @abstractmethod
    def at(self, site: Site, budget: Budget) -> Keep:
        """What stays of this map. Asked before any work: `ValueError` or `LookupError` if that was not learnt."""


class Corrector(Method):
    """Makes up for what was pruned: moves the mask, refits the survivors, or adds a small dense part."""

    gives_bias: ClassVar[bool] = False  # whether the module must be able to take a bias
    needs_whole: ClassVar[bool] = False  # whether it cannot act on a part of a fused map, or on one of stacked experts

    @abstractmethod
    def correct(self, w: Weight, pruned: Pruned, stats: Stats) -> Pruned:
        """`w` is the dense map that `pruned` came from. What is kept may move, but `pruned.budget` still holds."""


class Quantiser(Corrector):
    """Rounds the survivors to a grid, on which each takes `bits` bits. The mask stays as it is, and so do its zeros."""

    bits: int

    @abstractmethod
    def quantise(self, w: Weight, pruned: Pruned, stats: Stats) -> tuple[Weight, Grid]:
        """The survivors on their grid, zero where pruned, in float32; and the grid."""

    def correct(self, w: Weight, pruned: Pruned, stats: Stats) -> Pruned:
        if pruned.grid is not None:
            raise ValueError(f"{self.name}: the weights lie on a grid already; write one quantiser in a step")
        weight, grid = self.quantise(w, pruned, stats)
        return replace(pruned, weight=weight.to(w.dtype), grid=grid)


@dataclass(frozen=True)
class Share:
    """What an allocator knows of one map."""

    name: str
    shape: tuple[int, int]
    layer: int | None
    signal: Float[Tensor, "..."] | None = None


class Allocator(Method):
    """Divides one budget over the maps of a model. Most give `signal`; those that must try something out give `sense`."""

    def signal(self, w: Weight, stats: Stats) -> Float[Tensor, "..."]:
        """What must be remembered of one map, small."""
        raise NotImplementedError(f"{type(self).__name__} gives neither `signal` nor `sense`")

    def sense(self, w: Weight, stats: Stats, loss: Callable[[Weight], float]) -> Float[Tensor, "..."]:
        """`signal` for those that measure: `loss(v)` is the mean loss of the model (nats a token) on the calibration data
        if this map were `v` and all others dense. Each call runs this block and all behind it on all data."""
        return self.signal(w, stats)

    @abstractmethod
    def allocate(self, budget: Budget, shares: Sequence[Share]) -> list[Budget]:
        """One budget a map, in order; together they keep what `budget` keeps of all."""


class ByWeight(Allocator):
    """Weigh the maps: what share of a map stays is in proportion. Most allocators give `weigh` alone."""

    @abstractmethod
    def weigh(self, budget: Budget, shares: Sequence[Share]) -> list[float]:
        """One number above zero a map; only their proportions count."""

    def allocate(self, budget: Budget, shares: Sequence[Share]) -> list[Budget]:
        """Counts with the exact total. `per row` and `per column` budgets stay so: each row of a map keeps the same
        number, and the total is the largest that whole rows allow when the maps furthest behind are served first."""
        if budget.scope == "layer":
            raise ValueError(
                f"budget '{budget}': an allocator divides over all maps; write 'per tensor' or 'per model'"
            )
        (h, w), shapes = budget.unit, [share.shape for share in shares]
        sizes = [(rows // h) * (cols // w) for rows, cols in shapes]
        counts = divide(budget, sizes, self.weigh(budget, shares))
        if budget.scope not in ("row", "column"):
            return [budget.with_count(n) for n in counts]
        lanes = [rows // h if budget.scope == "row" else cols // w for rows, cols in shapes]
        each = [max(1, n // lane) for n, lane in zip(counts, lanes, strict=True)]
        left = sum(counts) - sum(e * lane for e, lane in zip(each, lanes, strict=True))
        for i in sorted(range(len(each)), key=lambda i: each[i] * lanes[i] - counts[i]):
            if lanes[i] <= left and each[i] * lanes[i] < sizes[i]:
                each[i], left = each[i] + 1, left - lanes[i]
        return [replace(budget, keep=e) for e in each]


@dataclass(frozen=True)
class Part:
    """One map of a group, and what was seen there: of its input at the reader alone, of gradients at every map."""

    role: str
    weight: Weight
    stats: Stats


@dataclass(frozen=True)
class Coupled:
    """The maps that share `units` pieces: unit u is the u-th run of rows in each writer, and of columns in the reader."""

    units: int
    writers: tuple[Part, ...]
    reader: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every map: the writers, then the reader."""
        return (*self.writers, self.reader)

    def by_unit(self, part: Part, values: Float[Tensor, "out in"]) -> Float[Tensor, "units size"]:
        """Anything of the shape of one of the maps (its weights, their gradients), unit by unit."""
        lines = values.mT if part is self.reader else values
        return lines.unflatten(0, (self.units, -1)).flatten(1)

    def total(self, values: Callable[[Part], Float[Tensor, "out in"]]) -> Float[Tensor, " units"]:
        """The sum over all maps of what belongs to each unit."""
        sums = [self.by_unit(part, values(part)).sum(1) for part in self.parts]
        return torch.stack(sums).sum(0)

    def columns(self, keep: Units) -> Bool[Tensor, " in"]:
        """The reader's columns that the kept units own."""
        return keep.repeat_interleave(self.reader.weight.shape[1] // self.units)


class Slimmer(Method):
    """Decides which units of coupled maps stay; the others leave all their maps, which become smaller."""

    multiple: ClassVar[int] = (
        1  # what stays of a group is rounded to a multiple of this; a method may have it as a field
    )
    readers: ClassVar[tuple[str, ...]] = ("down", "o")  # the roles of the maps it knows how to free of inputs
    looks: ClassVar[bool] = False  # whether `allocate` wants to know how far each block turns the hidden state

    @abstractmethod
    def slim(self, group: Coupled, count: int) -> tuple[Units, Weight]:
        """Which `count` units stay, and the reader's weights (zero in the columns of those that go)."""

    def allocate(self, budget: Budget, shares: Sequence[Share]) -> list[Budget]:
        """One budget a group, in order: the same for all, unless the method has a rule.

        A share is `(1, units)` wide; its signal, where the method `looks`, is the mean angle between what the block
        of the group hears and says, as a share of half a turn.
        """
        return [budget] * len(shares)

    def width(self, budget: Budget, units: int) -> int:
        """How many units stay: what the budget says, to the nearest multiple, at least one and at most all."""
        n, step = budget.of(units), self.multiple
        return n if step == 1 else min(units, max(step, (n + step // 2) // step * step))


class ByUnit(Slimmer):
    """Rank units, keep the best. Most slimmers give `score` alone; `per model` ranks all groups by it."""

    @abstractmethod
    def score(self, group: Coupled) -> Float[Tensor, " units"]:
        """Higher stays."""

    def slim(self, group: Coupled, count: int) -> tuple[Units, Weight]:
        keep = select(self.score(group), Budget(count))
        return keep, group.reader.weight * group.columns(keep)
