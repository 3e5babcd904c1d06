"""Bias correction: the mean of what was pruned goes to the bias."""

from dataclasses import replace

from fewer.calibrate import InputMean, Stats
from fewer.core import Paper, method
from fewer.weights import Corrector, Pruned, Weight

TITLE = "Data-Free Quantization Through Weight Equalization and Bias Correction"


@method(Paper("1906.04721", TITLE, 2019, equation="Section 4.2"))
class BiasCorrection(Corrector):
    """Add (w - w') E[x] to the bias, so that each output has the mean it had; nothing else moves.

    Comes last: what corrects after it is not heard. A module without a bias is given one, which the packed form stores;
    a plain checkpoint of an architecture without biases has no place for it, and saving so is refused before any work.

    Differs from the paper: E[x] is measured on the calibration data, not derived from batch normalisation (as in
    FLAP, 2312.11983).

    The input of mean 3 is pruned: its 2 * 3 stay.

    >>> w, x = torch.tensor([[2.0, 5.0]]), torch.tensor([[2.0, 1.0], [4.0, -1.0]])
    >>> before = Pruned(torch.tensor([[0.0, 5.0]]), torch.tensor([[False, True]]), budget("1"))
    >>> BiasCorrection().correct(w, before, observe(BiasCorrection.needs, w, x)).bias
    tensor([6.])
    """

    needs = (InputMean,)
    gives_bias = True

    def correct(self, w: Weight, pruned: Pruned, stats: Stats) -> Pruned:
        lost = w.float() - pruned.dense().float()
        if not lost.any():
            return pruned
        return replace(pruned, bias=(lost @ stats[InputMean].value).to(w.dtype))
