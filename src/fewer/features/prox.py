"""The proximal family: one thresholding for each penalty |z|^q, hard and soft at its ends."""

from jaxtyping import Float
from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByScore, Own, Pre
from fewer.select import masked

STEPS = 60  # each halves the distance at least


@method(Paper("2301.10002", "Beyond l1 sparse coding in V1", 2023, ledger=428))
class Prox(ByScore):
    """z is where (z - pre)^2 / 2 + lambda |z|^q is least: zero up to a threshold, less than pre above it.

    q = 0 is the hard threshold (z = pre above it, AbsTopK), q = 1 the soft one (z = pre less lambda, of both signs), and
    between them z = |pre| - lambda q z^(q - 1), with a jump at the threshold, from 0 to 2 (1 - q) / (2 - q) of it. Sparse
    autoencoders are one such step (Zhu et al. 2025, 2510.00404: ReLU is q = 1 for z >= 0, JumpReLU and TopK are q = 0).

    Differs from the paper: lambda is not given but found for each input, such that it keeps k. One step with a learnt
    encoder, not an iteration.

    >>> Prox(q=1.0).code(torch.tensor([[3.0, -2.0, 1.0]]), budget("2"))
    tensor([[ 2., -1.,  0.]])
    >>> Prox(q=0.5).code(torch.tensor([[3.0, -2.0, 1.5]]), budget("2")).round(decimals=2)
    tensor([[ 2.7000, -1.6100,  0.0000]])
    """

    by_size = True
    q: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise ValueError(f"q={self.q}: give a number from 0 (hard) to 1 (soft)")

    def code(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        keep = self.keep(pre.detach(), budget)
        threshold = pre.detach().abs().masked_fill(keep, 0).amax(1, keepdim=True)
        return masked(self.shrunk(pre, threshold), keep)

    def shrunk(self, pre: Pre, threshold: Float[Tensor, "*one"]) -> Pre:
        """The larger solution of z = |pre| - lambda q z^(q - 1), with its sign; right above the threshold."""
        q, size = self.q, pre.detach().abs()
        landing = threshold * 2 * (1 - q) / (2 - q)  # where the threshold itself lands
        price = threshold if q == 1 else landing ** (2 - q) / (2 * (1 - q))
        z = size.clamp(min=1e-12)
        for _ in range(STEPS if 0 < q < 1 else 1):
            z = (size - price * q * z ** (q - 1)).clamp(min=landing).clamp(min=1e-12)
        slope = 1 / (1 - price * q * (1 - q) * z ** (q - 2))  # dz / d|pre|, by the implicit function
        return pre.sign() * (z + slope * (pre.abs() - size))
