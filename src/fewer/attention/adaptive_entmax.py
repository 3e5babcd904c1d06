"""Adaptively sparse attention: each head learns its own alpha of entmax."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import ByRow, May, Out, Parts, Reading, RowScore, Shape
from fewer.attention._by_kernel import by_kernel, fits
from fewer.core import Budget, Paper, method
from fewer.select import entmax

LEAST = 1e-3  # above 1: what float32 still tells from softmax


@method(Paper("1909.00015", "Adaptively Sparse Transformers", 2019, ledger=287))
class AdaptiveEntmax(ByRow):
    """Weigh by alpha-entmax with an alpha of each head, learnt between softmax and sparsemax.

    alpha = 1 + sigmoid(a) with a number `a` for each head and layer, whose gradient is exact: heads that look far stay dense, others
    become sparse. `alpha` is where all begin. Adaptive Sparse and Monotonic Attention (2209.15176, ledger 203) has this for its
    self-attention; its monotonic heads align a decoder with speech that has been heard, and there is none in a causal model.

    Differs from the paper: all heads begin at the same alpha, and alpha stays above 1.001.

    >>> half = AdaptiveEntmax().begin(Shape(heads=1, kv_heads=1, dim=1), torch.Generator())
    >>> AdaptiveEntmax().weigh(torch.tensor([[[[1.0, 1.0, -9.0]]]]), torch.ones(1, 3).bool(), half)
    tensor([[[[0.5000, 0.5000, 0.0000]]]])
    """

    alpha: float = 1.5
    file: str = ""

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        if not 1 < self.alpha < 2:
            raise ValueError(f"{self.name}: alpha={self.alpha} is learnt between 1 and 2; write alpha=1.5")
        return {"alpha": torch.full((shape.heads,), math.log((self.alpha - 1) / (2 - self.alpha)))}

    def weigh(self, score: RowScore, may: May, parts: Parts) -> RowScore:
        return entmax(score, self._alpha(parts).view(*score.shape[-4:-2], 1, 1))

    def mix(self, r: Reading, budget: Budget) -> Out:
        return by_kernel(r, self._alpha(r.parts)) if fits(r) else super().mix(r, budget)

    def _alpha(self, parts: Parts) -> Float[Tensor, " heads"]:
        a = parts["alpha"]
        return 1 + a.to(torch.promote_types(a.dtype, torch.float32)).sigmoid().clamp(min=LEAST)
