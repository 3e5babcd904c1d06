"""JumpReLU: a threshold for each latent, learnt."""

import torch
from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByPenalty, Own, Pass, Pre, Scalar, of_batch
from fewer.select import jump, step


@method(
    Paper(
        "2407.14435",
        "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders",
        2024,
        ledger=18,
        equation="eqs. 3, 9, 11, 12",
    )
)
class JumpRelu(ByPenalty):
    """Who is above its own threshold speaks, in full: z = pre H(pre - theta), cost |z|_0 / k.

    The thresholds learn from pre-activations within half a `bandwidth` of them, from the error as from the cost; the cost
    says nothing to the encoder.

    Differs from the paper: the penalty's weight is learnt until the mean number of latents is the budget, `price` is where
    it begins, and in the end all thresholds are moved by as much as meets it on held-out data; thresholds begin where normal
    pre-activations meet the budget, not at .001, and are learnt themselves, not their logarithms, which Adam hardly moves.
    Inputs have E|x|^2 = dim, so a bandwidth is sqrt(dim) wider, and more: a wide one learns faster, and in runs of a few
    hundred steps misses less than one of 0.2 (docs/LOG.md).

    >>> JumpRelu().code(torch.tensor([[3.0, 0.5, -1.0]]), budget("1"), {"threshold": torch.tensor([1.0, 1.0, 1.0])})
    tensor([[3., 0., 0.]])
    """

    bandwidth: float = 1.0
    price: float = 0.1

    def begin(self, latents: int, budget: Budget) -> dict[str, Tensor]:
        share = torch.tensor(1 - min(0.5, budget.of(latents) / latents), dtype=torch.float64)
        return {
            **super().begin(latents, budget),
            "threshold": torch.special.ndtri(share).float().expand(latents).clone(),
        }

    def code(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return jump(pre, own["threshold"].abs(), self.bandwidth)

    def cost(self, seen: Pass, budget: Budget, own: Own) -> Scalar:
        spoke = step(seen.pre, own["threshold"].abs(), self.bandwidth).sum(1).mean()
        return self.price * spoke / budget.of(seen.pre.shape[1])

    def settle(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> dict[str, Tensor]:
        theta = own["threshold"].abs()
        over = pre - theta
        keep = of_batch(over, budget)
        return {"threshold": (theta + over.masked_fill(keep, -torch.inf).amax()).clamp(min=0)}
