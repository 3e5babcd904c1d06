"""Sparsemax in place of softmax."""

from fewer.attention import ByRow, May, Out, Parts, Reading, RowScore
from fewer.attention._by_kernel import by_kernel, fits
from fewer.core import Budget, Paper, method
from fewer.select import sparsemax

TITLE = "From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label Classification"


@method(Paper("1602.02068", TITLE, 2016, ledger=273, equation="algorithm 1"))
class Sparsemax(ByRow):
    """Weigh what is read by the point of the simplex that lies nearest to its scores: most weights are exactly nothing.

    p = max(z - tau, 0) with tau such that p sums to 1, exactly, from the sorted scores; its gradient is g less the mean of g over the
    support, on the support.

    >>> Sparsemax().weigh(torch.tensor([[1.0, 0.5, -1.0]]), torch.ones(1, 3).bool(), {})
    tensor([[0.7500, 0.2500, 0.0000]])
    """

    def weigh(self, score: RowScore, may: May, parts: Parts) -> RowScore:
        return sparsemax(score)

    def mix(self, r: Reading, budget: Budget) -> Out:
        return by_kernel(r, 2.0) if fits(r) else super().mix(r, budget)
