"""Pyramidal: each block keeps a smaller share than the one before it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core import Budget, Paper, method
from fewer.weights import ByWeight, Share, Weight


@method(Paper("2210.02412", "Why Random Pruning Is All We Need to Start Sparse", 2022, ledger=477))
class Pyramidal(ByWeight):
    """Keep the share r of the first block, r^2 of the second, r^3 of the third, with the one r that meets the budget.

    No data is needed. The first blocks to be pruned count as the first, wherever the pattern begins.

    Differs from the paper: depth is counted in blocks, not in maps, for maps of a block stand beside each other as much
    as behind each other, and r^224 of the last map of a 7B model would be nothing. Maps outside of all blocks keep r.

    r + r^2 = 2 * 37.5 % has the solution r = 1/2:

    >>> shares = [Share("a", (8, 8), 0), Share("b", (8, 8), 1)]
    >>> [b.keep for b in Pyramidal().allocate(budget("37.5% per tensor"), shares)]
    [32, 16]
    """

    def signal(self, w: Weight, stats: Stats) -> Float[Tensor, "..."]:
        return torch.zeros(0)

    def weigh(self, budget: Budget, shares: Sequence[Share]) -> list[float]:
        blocks = sorted({share.layer for share in shares if share.layer is not None})
        depth = [1 if share.layer is None else 1 + blocks.index(share.layer) for share in shares]
        sizes = [rows * cols for rows, cols in (share.shape for share in shares)]
        units = sum(sizes) // (budget.unit[0] * budget.unit[1])
        wanted = budget.of(units) / units * sum(sizes)
        low, high = 0.0, 1.0
        for _ in range(60):  # what is kept grows with r
            middle = (low + high) / 2
            kept = sum(n * middle**d for n, d in zip(sizes, depth, strict=True))
            low, high = (middle, high) if kept < wanted else (low, middle)
        return [high**d for d in depth]
