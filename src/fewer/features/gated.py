"""Gated: whether a latent speaks and how loud are two questions."""

import torch
from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByPenalty, Own, Pass, Pre, Scalar
from fewer.select import masked


@method(
    Paper("2404.16014", "Improving Dictionary Learning with Gated Sparse Autoencoders", 2024, equation="eqs. 6, 7, 8")
)
class Gated(ByPenalty):
    """The gate opens where pre > 0, and what is said is max(exp(r) pre + b, 0); only the gate pays, |max(pre, 0)|_1 / dim.

    The gate learns from that cost and from having to explain the input itself, through a decoder held fast:
    loss = |y - z W - b|^2 + price * cost + |y - max(pre, 0) W' - b'|^2, primes for what gets no gradient.

    Differs from the paper: the penalty's weight is learnt until the mean number of latents is the budget (within 10 %),
    `price` is where it begins. The magnitude's bias is counted from the gate's pre-activation, bias included: the same
    functions, but the gate's bias hears of the error too.

    >>> own = {"scale": torch.zeros(3), "shift": torch.tensor([-1.0, 1.0, 1.0])}
    >>> Gated().code(torch.tensor([[3.0, 2.0, -0.5]]), budget("2"), own)
    tensor([[2., 3., 0.]])
    """

    price: float = 1.0

    def begin(self, latents: int, budget: Budget) -> dict[str, Tensor]:
        return {**super().begin(latents, budget), "scale": torch.zeros(latents), "shift": torch.zeros(latents)}

    def code(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return masked((own["scale"].exp() * pre + own["shift"]).relu(), pre > 0)

    def cost(self, seen: Pass, budget: Budget, own: Own) -> Scalar:
        return self.price * seen.pre.relu().sum(1).mean() / seen.target.shape[1]

    def penalty(self, seen: Pass, budget: Budget, own: Own = NOTHING) -> Scalar:
        by_gate = seen.pre.relu() @ seen.decoder.detach() + seen.decoder_bias.detach()
        return super().penalty(seen, budget, own) + (seen.target - by_gate).square().mean()
