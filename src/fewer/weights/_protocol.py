"""weights: which entries of a linear map stay.

A step on this axis is a pruner, perhaps an allocator before it and correctors after it:
`weights/wanda 50% by owl + dsnot + eora(rank=16) @ *.mlp.*`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core import Budget, Method, Site
from fewer.select import divide, select

__all__ = ["Allocator", "ByScore", "ByWeight", "Corrector", "Keep", "Learnt", "Pruned", "Pruner", "Share", "Weight"]

Weight = Float[Tensor, "out in"]
Keep = Bool[Tensor, "out in"]


@dataclass(frozen=True)
class Pruned:
    """What is left of a map: the survivors (zero where pruned), where they are, by which budget, a low-rank part."""

    weight: Weight
    keep: Keep
    budget: Budget
    low_rank: tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]] | None = None

    def dense(self) -> Weight:
        """The map that will act: survivors plus low-rank part, which is added in float32, as it is when it acts."""
        if self.low_rank is None:
            return self.weight
        left, right = self.low_rank
        return self.weight.float() + left.float() @ right.float()


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

    @abstractmethod
    def correct(self, w: Weight, pruned: Pruned, stats: Stats) -> Pruned:
        """`w` is the dense map that `pruned` came from. What is kept may move, but `pruned.budget` still holds."""


@dataclass(frozen=True)
class Share:
    """What an allocator knows of one map."""

    name: str
    shape: tuple[int, int]
    layer: int | None
    signal: Float[Tensor, "..."] | None = None


class Allocator(Method):
    """Divides one budget over the maps of a model."""

    @abstractmethod
    def signal(self, w: Weight, stats: Stats) -> Float[Tensor, "..."]:
        """What must be remembered of one map, small."""

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
