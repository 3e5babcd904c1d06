"""SNIP: a weight matters as much as the loss feels it."""

from fewer.calibrate import GradMean, Stats
from fewer.core import Paper, method
from fewer.weights import ByScore, Weight

TITLE = "SNIP: Single-shot Network Pruning based on Connection Sensitivity"


@method(Paper("1810.02340", TITLE, 2018, equation="eq. 4 and 5"))
class Snip(ByScore):
    """Keep the largest |w * dL/dw|, the gradient being that of the mean loss over all calibration windows.

    It is what the loss changes by, to first order, if the weight is scaled: its connection sensitivity. Squared it is
    also the first-order Taylor score of one batch, (w * dL/dw)^2 (1906.10771, eq. 8): the same ranking.

    Differs from the paper: it is for networks before training; of a trained one, whose mean gradient is near zero,
    mostly the noise of the calibration windows is left. The scores are not divided by their sum: no rank depends on it.

    Windows pull the second weight in opposite ways, so that together they do not feel it:

    >>> w, x = torch.tensor([[1.0, -3.0, 2.0]]), torch.ones(1, 3)
    >>> grads = torch.tensor([[[4.0, 1.0, -1.0]], [[2.0, -1.0, -2.0]]])
    >>> Snip().score(w, observe(Snip.needs, w, x, grads))
    tensor([[3., 0., 3.]])
    """

    needs = (GradMean,)

    def score(self, w: Weight, stats: Stats) -> Weight:
        return (w.float() * stats[GradMean].value).abs()
