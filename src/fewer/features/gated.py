"""Gated: who speaks and how loud are two questions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, Own, Pass, Pre, Scalar, Sparsifier

from ._pooled import pressure, start, weight_of


@method(Paper("2404.16014", "Improving Dictionary Learning with Gated Sparse Autoencoders", 2024))
class Gated(Sparsifier):
    """z = (pre > 0) * ReLU(exp(r) pre + b): a gate on the pre-activation, a magnitude that shares its direction (eq. 5, 6).

    The penalty is lambda * sum ReLU(pre) + |x - ReLU(pre) W_dec - b_dec|^2 with the decoder held fixed (eq. 8): only the gate is
    pressed, so magnitudes do not shrink. Differs from the paper: lambda is learnt, as in `features/relu_l1`.

    >>> own = {"scale": torch.zeros(2), "shift": torch.tensor([0.5, 0.5])}
    >>> Gated().code(torch.tensor([[3.0, -0.1]]), budget("1"), own)
    tensor([[3.5000, 0.0000]])
    """

    aims = True
    weight: float = 1e-2

    def begin(self, latents: int) -> dict[str, Tensor]:
        return {"scale": torch.zeros(latents), "shift": torch.zeros(latents)} | start(self.weight)

    def code(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return torch.where(pre > 0, (own["scale"].exp() * pre + own["shift"]).relu(), 0.0)

    def penalty(self, seen: Pass, budget: Budget, own: Own = NOTHING) -> Scalar:
        k, gate = budget.of(seen.pre.shape[1]), seen.pre.relu()
        l0 = (seen.pre > 0).sum(1).float().mean()
        alone = F.mse_loss(gate @ seen.decoder.detach() + seen.decoder_bias.detach(), seen.target)
        return weight_of(own) * gate.sum(1).mean() + alone + pressure(own, l0, k)
