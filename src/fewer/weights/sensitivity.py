"""Sensitivity: maps that are missed more keep more, each measured by pruning it alone."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import InputSquares, Stats
from fewer.core import Budget, Paper, method
from fewer.core import budget as read
from fewer.select import select
from fewer.weights import ByWeight, Share, Weight


@method(
    Paper(
        "1506.02626", "Learning both Weights and Connections for Efficient Neural Networks", 2015, equation="Figure 6"
    )
)
class Sensitivity(ByWeight):
    """Prune one map at a time to the share `probe`, measure how much the loss rises, and keep in proportion to its root.

    If map i alone kept the share d, the loss would rise by about s_i (1 / d - 1): not at all with everything kept,
    without bound with nothing; the probe says s_i. The shares that make the sum of all rises least for a budget of
    sum n_i d_i are d_i ~ sqrt(s_i / n_i). A map that is not missed counts as `least` of the one missed most.

    Differs from the paper: it shows the sensitivity of each layer and sets thresholds by hand from it ("the smallest
    threshold was applied to the most sensitive layer"); the curve and the rule are ours. The probe ranks by Wanda.

    Without half of it, the loss rises by 0.4 for the first map and by 0.1 for the second: twice the share.

    >>> shares = [Share("a", (10, 10), 0, torch.tensor(0.4)), Share("b", (10, 10), 1, torch.tensor(0.1))]
    >>> [b.keep for b in Sensitivity().allocate(budget("45% per tensor"), shares)]
    [60, 30]
    """

    needs = (InputSquares,)
    quick = False
    probe: str = "50%"
    least: float = 0.01

    def sense(self, w: Weight, stats: Stats, loss: Callable[[Weight], float]) -> Float[Tensor, ""]:
        keep = select(w.float().abs() * stats[InputSquares].rms, read(self.probe))
        return torch.tensor(loss(w * keep) - loss(w))

    def weigh(self, budget: Budget, shares: Sequence[Share]) -> list[float]:
        rises = [float(share.signal if share.signal is not None else 0) for share in shares]
        floor = self.least * max(rises)
        if floor <= 0:  # no map is missed
            return [1.0] * len(rises)
        sizes = [rows * cols for rows, cols in (share.shape for share in shares)]
        return [math.sqrt(max(rise, floor) / n) for rise, n in zip(rises, sizes, strict=True)]
