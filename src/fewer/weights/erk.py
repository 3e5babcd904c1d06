"""ERK: small maps keep a larger share."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core import Budget, Paper, method
from fewer.select import erk_weights
from fewer.weights import ByWeight, Share, Weight


@method(
    Paper(
        "2202.02643",
        "The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline for Sparse Training",
        2022,
        ledger=174,
        equation="Section 3.2",
    )
)
class Erk(ByWeight):
    """Keep a share of each map in proportion to (out + in) / (out * in): Erdos-Renyi-Kernel densities.

    Maps that would keep more than all they have are kept whole, and the others share what is left. The rule is from
    SET (1707.04780, eq. 1) and RigL (1911.11134); no data is needed. See also ledger row 477. Linear maps have no
    kernel, so that SET's Erdos-Renyi shares are the same and have no other name here.

    >>> shares = [Share("a", (4, 4), 0), Share("b", (8, 8), 0)]
    >>> [b.keep for b in Erk().allocate(budget("40% per tensor"), shares)]  # weights 1/2 and 1/4, of 16 and 64 weights
    [11, 21]
    """

    def signal(self, w: Weight, stats: Stats) -> Float[Tensor, "..."]:
        return torch.zeros(0)

    def weigh(self, budget: Budget, shares: Sequence[Share]) -> list[float]:
        return erk_weights([share.shape for share in shares])
