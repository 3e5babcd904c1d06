"""Fisher: a weight matters as much as the answers change without it."""

from fewer.calibrate import GradSquares, Stats
from fewer.core import Paper, method
from fewer.weights import ByScore, Weight

TITLE = "Faster gaze prediction with dense networks and Fisher pruning"


@method(Paper("1801.05787", TITLE, 2018, equation="Section 2.2"))
class Fisher(ByScore):
    """Keep the largest w^2 * E[g^2] / 2, g being the gradient of one calibration window's loss.

    At a minimum the loss rises by w^2 h / 2 when a weight goes (Optimal Brain Damage), and the curvature h is on average
    the squared gradient, the diagonal of the empirical Fisher. The mean of (w * g)^2 is at once the first-order
    Taylor score of 1906.10771 (eq. 8, averaged over batches): the same ranking, so it has no other name here.

    Differs from the paper: single weights, not feature maps; a gradient is that of a window's mean loss, over many tokens.

    >>> w, x = torch.tensor([[1.0, -3.0]]), torch.ones(1, 2)
    >>> grads = torch.tensor([[[4.0, 1.0]], [[2.0, -1.0]]])
    >>> Fisher().score(w, observe(Fisher.needs, w, x, grads))  # 1 * (16 + 4) / 2 / 2 and 9 * (1 + 1) / 2 / 2
    tensor([[5.0000, 4.5000]])
    """

    needs = (GradSquares,)

    def score(self, w: Weight, stats: Stats) -> Weight:
        return w.float().square() * stats[GradSquares].value / 2
