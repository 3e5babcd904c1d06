"""GraSP: keep the weights that the flow of the gradient runs through."""

from fewer.calibrate import HessianGradient, Stats
from fewer.core import Paper, method
from fewer.weights import ByScore, Weight

TITLE = "Picking Winning Tickets Before Training by Preserving Gradient Flow"


@method(Paper("2002.07376", TITLE, 2020, equation="eq. 8"))
class Grasp(ByScore):
    """Keep the largest w * (H g): without it the gradient's squared length, |g|^2, would fall most.

    Removing a weight changes |g|^2 by -2 w (H g), to first order; the paper calls -w (H g) the score and removes the
    weights where it is highest. A large negative w * (H g) is a weight in the way of learning, and goes first.

    Differs from the paper: the loss is taken as it is, without the paper's temperature of 200 on the logits. It is made
    for networks before training: of a trained one it keeps what would still learn, not what matters.

    >>> w, x = torch.tensor([[1.0, -3.0, 2.0]]), torch.ones(1, 3)
    >>> curve = torch.tensor([[[4.0, 1.0, 0.0]]])  # H g
    >>> Grasp().score(w, observe(Grasp.needs, w, x, curve=curve))
    tensor([[ 4., -3.,  0.]])
    """

    quick = False  # three passes back and forth for every window: as long as all scores by gradients together
    needs = (HessianGradient,)

    def score(self, w: Weight, stats: Stats) -> Weight:
        return w.float() * stats[HessianGradient].value
