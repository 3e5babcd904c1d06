"""Balanced: every map keeps the same number."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core import Budget, Paper, method
from fewer.weights import ByWeight, Share, Weight


@method(Paper("2210.02412", "Why Random Pruning Is All We Need to Start Sparse", 2022, ledger=477))
class Balanced(ByWeight):
    """Keep the same number of weights in each map, however large it is; small maps are kept whole.

    What a full map cannot take, the others share. No data is needed.

    Differs from the paper: there, what a full map cannot take is lost, and less is kept than was asked for.

    Half of 16 + 64 + 64 weights is 72: 24 each would be more than the first has, so the others keep 28.

    >>> shares = [Share("a", (4, 4), 0), Share("b", (8, 8), 0), Share("c", (8, 8), 1)]
    >>> [b.keep for b in Balanced().allocate(budget("50% per tensor"), shares)]
    [16, 28, 28]
    """

    def signal(self, w: Weight, stats: Stats) -> Float[Tensor, "..."]:
        return torch.zeros(0)

    def weigh(self, budget: Budget, shares: Sequence[Share]) -> list[float]:
        return [1 / (rows * cols) for rows, cols in (share.shape for share in shares)]
