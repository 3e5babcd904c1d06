"""Movement: keep the weights that learning pushes away from zero."""

from fewer.calibrate import GradMean, Stats
from fewer.core import Paper, method
from fewer.weights import ByScore, Weight

TITLE = "Movement Pruning: Adaptive Sparsity by Fine-Tuning"


@method(Paper("2005.07683", TITLE, 2020, equation="Section 4"))
class Movement(ByScore):
    """Keep the largest -w * dL/dw: a step of gradient descent makes those weights larger, the others smaller.

    Differs from the paper: there, S = -sum over the steps of fine-tuning of w * dL/dw, while w moves and the mask with
    it; here all gradients are those of the calibration windows at the weights as they are, so it is one step long.

    The first and the last are pushed away from zero, the second towards it, though it is the largest:

    >>> w, x = torch.tensor([[1.0, -3.0, 2.0]]), torch.ones(1, 3)
    >>> Movement().score(w, observe(Movement.needs, w, x, torch.tensor([[-4.0, -1.0, -1.0]])))
    tensor([[ 4., -3.,  2.]])
    """

    needs = (GradMean,)

    def score(self, w: Weight, stats: Stats) -> Weight:
        return -w.float() * stats[GradMean].value
