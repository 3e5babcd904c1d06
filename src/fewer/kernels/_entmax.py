"""alpha-entmax with its exact gradient, for whoever selects and whoever attends."""

from typing import Any

import torch
from torch import Tensor


def wide(z: Tensor) -> Tensor:
    """In float32 at least."""
    return z.to(torch.promote_types(z.dtype, torch.float32))


class Entmax(torch.autograd.Function):
    """max((alpha - 1) z - tau, 0)^(1 / (alpha - 1)), tau by bisection; a row may hold -inf, but not it alone."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, alpha: Tensor) -> Tensor:
        x, a = wide(z), alpha.to(torch.promote_types(z.dtype, torch.float32))
        x = (x - x.amax(-1, keepdim=True)) * (a - 1)
        low, high = torch.full_like(a, -1), torch.zeros_like(a)  # of tau, as the largest x is 0
        for _ in range(60 if x.dtype == torch.float64 else 30):
            tau = (low + high) / 2
            heavy = _power(x - tau, a).sum(-1, keepdim=True) >= 1
            low, high = torch.where(heavy, tau, low), torch.where(heavy, high, tau)
        p = _power(x - low, a)
        p = p / p.sum(-1, keepdim=True)
        ctx.save_for_backward(p, a)
        ctx.alpha_dtype = alpha.dtype
        return p.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        p, a = ctx.saved_tensors
        g, support = wide(grad), p > 0
        slope = torch.where(support, p ** (2 - a), 0.0)
        pull = slope / slope.sum(-1, keepdim=True)
        dz = g * slope - (g * slope).sum(-1, keepdim=True) * pull
        dalpha = None
        if ctx.needs_input_grad[1]:
            entropy = torch.where(support, -p * p.clamp(min=torch.finfo(p.dtype).tiny).log(), 0.0)
            change = (p - pull) / (a - 1) ** 2 + (entropy - pull * entropy.sum(-1, keepdim=True)) / (a - 1)
            dalpha = (g * change).sum_to_size(a.shape).to(ctx.alpha_dtype)
        return dz.to(grad.dtype), dalpha


def _power(x: Tensor, alpha: Tensor) -> Tensor:
    return x.clamp(min=0) ** (1 / (alpha - 1))
