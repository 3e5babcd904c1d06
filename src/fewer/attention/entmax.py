"""1.5-entmax and its neighbours in place of softmax."""

from fewer.attention import ByRow, May, Out, Parts, Reading, RowScore
from fewer.attention._by_kernel import by_kernel, fits
from fewer.core import Budget, Paper, method
from fewer.select import entmax, entmax15


@method(Paper("1905.05702", "Sparse Sequence-to-Sequence Models", 2019, equation="algorithms 1 and 2"))
class Entmax(ByRow):
    """Weigh what is read by alpha-entmax of its scores, which gives most of them exactly nothing.

    p = max((alpha - 1) z - tau, 0)^(1 / (alpha - 1)) with tau such that p sums to 1: softmax as alpha comes near 1, sparsemax at 2. Exact
    for 1.5, by bisection to the last bit for any other above 1. Nothing is learnt.

    >>> Entmax().weigh(torch.tensor([[1.0, 1.0, -9.0]]), torch.ones(1, 3).bool(), {})
    tensor([[0.5000, 0.5000, 0.0000]])
    """

    alpha: float = 1.5

    def weigh(self, score: RowScore, may: May, parts: Parts) -> RowScore:
        return entmax15(score) if self.alpha == 1.5 else entmax(score, self.alpha)

    def mix(self, r: Reading, budget: Budget) -> Out:
        return by_kernel(r, self.alpha) if fits(r) else super().mix(r, budget)
