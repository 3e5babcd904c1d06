"""ReLU and L1: the first sparse autoencoder for language models."""

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByPenalty, Own, Pass, Pre, Scalar


@method(
    Paper("2309.08600", "Sparse Autoencoders Find Highly Interpretable Features in Language Models", 2023, ledger=10)
)
class ReluL1(ByPenalty):
    """Whatever is positive speaks, and the sum of what is said is penalised: z = max(pre, 0), cost |z|_1 / dim.

    Differs from the paper: the penalty's weight is not a constant to be searched for, but is learnt until the mean number of
    latents is the budget (within 10 %); `price` is where it begins. Encoder and decoder are not tied; rows of the decoder
    have length one, so that |z|_1 cannot be made small by longer rows.

    >>> ReluL1().code(torch.tensor([[3.0, 2.0, -1.0]]), budget("2"))
    tensor([[3., 2., 0.]])
    """

    price: float = 1.0

    def code(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return pre.relu()

    def cost(self, seen: Pass, budget: Budget, own: Own) -> Scalar:
        return self.price * seen.z.sum(1).mean() / seen.target.shape[1]
