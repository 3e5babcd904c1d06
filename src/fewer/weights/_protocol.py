"""weights: which entries of a linear map stay.

A step on this axis is a pruner, perhaps an allocator before it and correctors after it:
`weights/wanda 50% by owl + dsnot + eora(rank=16) @ *.mlp.*`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core import Budget, Method
from fewer.select import select

__all__ = ["Allocator", "ByScore", "Corrector", "Keep", "Pruned", "Pruner", "Share", "Weight"]

Weight = Float[Tensor, "out in"]
Keep = Bool[Tensor, "out in"]


@dataclass(frozen=True)
class Pruned:
    """What is left of a map: the survivors (zero where pruned), where they are, and a low-rank part if any."""

    weight: Weight
    keep: Keep
    low_rank: tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]] | None = None

    def dense(self) -> Weight:
        """The map that will act: survivors plus low-rank part."""
        if self.low_rank is None:
            return self.weight
        left, right = self.low_rank
        return self.weight + (left.float() @ right.float()).to(self.weight.dtype)


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


class Corrector(Method):
    """Makes up for what was pruned: moves the mask, refits the survivors, or adds a small dense part."""

    @abstractmethod
    def correct(self, w: Weight, pruned: Pruned, stats: Stats) -> Pruned:
        """`w` is the dense map that `pruned` came from. What is kept may move; how many are kept may not."""


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
