"""ReLU with an L1 penalty: the first sparse autoencoders of language models."""

from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, Own, Pass, Pre, Scalar, Sparsifier

from ._pooled import pressure, start, weight_of


@method(
    Paper("2309.08600", "Sparse Autoencoders Find Highly Interpretable Features in Language Models", 2023, ledger=10)
)
class ReluL1(Sparsifier):
    """z = ReLU(pre), with lambda * sum |z| * |d| added to the loss, where |d| = 1 are the lengths of the decoder's rows.

    Differs from the paper: lambda is not given but learnt, so that k latents speak on average; it rises while more do. It
    begins at `weight`.

    >>> ReluL1().code(torch.tensor([[3.0, -2.0]]), budget("1"))
    tensor([[3., 0.]])
    """

    aims = True
    weight: float = 1e-2

    def begin(self, latents: int) -> dict[str, Tensor]:
        return start(self.weight)

    def code(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return pre.relu()

    def penalty(self, seen: Pass, budget: Budget, own: Own = NOTHING) -> Scalar:
        k, l0 = budget.of(seen.z.shape[1]), (seen.z > 0).sum(1).float().mean()
        return weight_of(own) * seen.z.sum(1).mean() + pressure(own, l0, k)
