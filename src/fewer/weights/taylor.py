"""Taylor: a weight matters as much as a window's loss changes without it, to first order."""

from fewer.calibrate import GradSizes, Stats
from fewer.core import Paper, method
from fewer.weights import ByScore, Weight

TITLE = "Pruning Convolutional Neural Networks for Resource Efficient Inference"


@method(Paper("1611.06440", TITLE, 2016, equation="eq. 7"))
class Taylor(ByScore):
    """Keep the largest E|w * g|, g being the gradient of one calibration window's loss.

    The size is taken window by window and then averaged: a weight that windows pull in opposite ways counts. SNIP takes
    the size of the average, Fisher the average of the square, which follows the loudest windows more.

    Differs from the paper: single weights, not feature maps, and no normalisation by the layer: for a ranking over
    several maps (`per model`) the paper divides by the length of all scores of a layer.

    >>> w, x = torch.tensor([[1.0, -3.0]]), torch.ones(1, 2)
    >>> grads = torch.tensor([[[4.0, 1.0]], [[2.0, -1.0]]])
    >>> Taylor().score(w, observe(Taylor.needs, w, x, grads))
    tensor([[3., 3.]])
    """

    needs = (GradSizes,)

    def score(self, w: Weight, stats: Stats) -> Weight:
        return w.float().abs() * stats[GradSizes].value
