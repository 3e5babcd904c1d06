"""JumpReLU: each latent has a threshold, and says all or nothing."""

import torch
from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, Own, Pass, Pre, Scalar, Sparsifier
from fewer.select import jump, step

from ._pooled import of_batch


@method(
    Paper(
        "2407.14435",
        "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders",
        2024,
        ledger=18,
    )
)
class JumpRelu(Sparsifier):
    """z = pre where pre > theta, else 0; theta learns by straight-through gradients from what is near it (eq. 11, 12).

    The penalty is `weight` * (L0 / k - 1)^2 with the same gradients, on pre-activations: the form of the paper's appendix
    that aims at a given L0. `bandwidth` is in units of pre-activations, whose spread is about 1 (the paper's 0.001 is for
    inputs of length 1, sqrt(dim) times as small). `first` is theta at the start.

    >>> JumpRelu().code(torch.tensor([[3.0, 0.2, -2.0]]), budget("1"), {"threshold": torch.full((3,), 0.5)})
    tensor([[3., 0., 0.]])
    """

    aims = True
    bandwidth: float = 0.1
    weight: float = 1.0
    first: float = 0.5

    def begin(self, latents: int) -> dict[str, Tensor]:
        return {"threshold": torch.full((latents,), self.first)}

    def code(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return jump(pre, own["threshold"].clamp(min=0), self.bandwidth)

    def penalty(self, seen: Pass, budget: Budget, own: Own = NOTHING) -> Scalar:
        l0 = step(seen.pre, own["threshold"].clamp(min=0), self.bandwidth).sum(1).mean()
        return self.weight * (l0 / budget.of(seen.pre.shape[1]) - 1).square()

    def settle(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> dict[str, Tensor]:
        """All thresholds moved by as much as makes k latents speak on average."""
        theta = own["threshold"].clamp(min=0)
        over = pre - theta
        return {"threshold": (theta + over[~of_batch(over, budget)].amax()).clamp(min=0)}
