"""Magnitude: an input matters as much as it is large."""

from fewer.activations import ByReach
from fewer.calibrate import Stats
from fewer.core import Paper, method


@method(Paper("2408.14690", "Training-Free Activation Sparsity in Large Language Models", 2024, equation="eq. 1"))
class Magnitude(ByReach):
    """Compute the inputs with the largest |x_i|.

    Differs from the paper (TEAL): each token keeps its own largest; a threshold for all tokens is what calibration makes of it.

    >>> Magnitude().score(torch.tensor([-3.0, 2.0]), observe((), torch.ones(1, 2), torch.ones(1, 2)))
    tensor([3., 2.])
    """

    def reach(self, stats: Stats) -> None:
        return None
