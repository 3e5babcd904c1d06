"""Selections with a slope: sparsemax, entmax and SparseK, each with its exact gradient.

All three are projections: forward finds the point, backward multiplies by the Jacobian in closed form.
Halves are computed in float32.
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from fewer.kernels._entmax import Entmax, wide


def sparsemax(z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """The point of the simplex nearest to `z`: p = max(z - tau, 0) with tau such that p sums to 1.

    Martins and Astudillo 2016 (1602.02068), algorithm 1; Jacobian diag(s) - s s'/|s| on the support s (eq. 12).

    >>> sparsemax(torch.tensor([1.0, 0.5, -1.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    return _Sparsemax.apply(z)


def entmax15(z: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """1.5-entmax, exactly: p = max(z/2 - tau, 0)^2 with tau such that p sums to 1.

    Peters, Niculae and Martins 2019 (1905.05702), algorithm 2: between softmax (alpha 1) and sparsemax (alpha 2).

    >>> entmax15(torch.tensor([1.0, 1.0, -9.0]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    return _Entmax15.apply(z)


def entmax(z: Float[Tensor, "*rows n"], alpha: float | int | Float[Tensor, "..."]) -> Float[Tensor, "*rows n"]:
    """alpha-entmax for any alpha above 1: p = max((alpha - 1) z - tau, 0)^(1 / (alpha - 1)), summing to 1.

    tau is found by bisection to the last bit (Peters et al. 2019, algorithm 1). `alpha` is a number or a tensor that
    broadcasts against the rows' `[*rows, 1]`, and then has a gradient too (Correia et al. 2019, 1909.00015, eq. 8).

    ValueError: an alpha that is not above 1 (at 1 it is softmax, which selects nothing).

    >>> entmax(torch.tensor([1.0, 0.5, -1.0]), 2.0)
    tensor([0.7500, 0.2500, 0.0000])
    """
    power = torch.as_tensor(alpha, dtype=None if isinstance(alpha, Tensor) else torch.float64).to(z.device)
    if not (power > 1).all():
        raise ValueError(f"entmax needs alpha above 1, not {alpha}; alpha = 1 is torch.softmax")
    return Entmax.apply(z, power)


def sparse_k(z: Float[Tensor, "*rows n"], k: "float | int | Shaped[Tensor, '*_rows 1']") -> Float[Tensor, "*rows n"]:
    """The point of {0 <= p <= 1, sum p = k} nearest to `z`: p = clip(z - tau, 0, 1), a top-k with a slope.

    The SparseK operator of Lou et al. 2024 (2406.16747); tau is exact, from the sorted breakpoints `z`, `z - 1`,
    where the sum of p bends. `k` is a number, or one of each row. Jacobian: sparsemax's on the entries strictly between 0 and 1; if there are none, zero.

    ValueError: a `k` outside (0, n].

    >>> sparse_k(torch.tensor([2.0, 1.0, 0.5, -1.0]), 2)
    tensor([1.0000, 0.7500, 0.2500, 0.0000])
    """
    if not bool(((torch.as_tensor(k) > 0) & (torch.as_tensor(k) <= z.shape[-1])).all()):
        raise ValueError(f"k is how many of {z.shape[-1]} stay: above 0 and at most {z.shape[-1]}, not {k}")
    return _SparseK.apply(z, k if isinstance(k, Tensor) else float(k))


def _support_vjp(grad: Tensor, support: Tensor) -> Tensor:
    """grad times (diag(s) - s s'/|s|): what is left on the support once its mean is taken away."""
    grad = wide(grad) * support
    return (grad - grad.sum(-1, keepdim=True) / support.sum(-1, keepdim=True).clamp(min=1)) * support


class _Sparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        x = wide(z)
        x = x - x.amax(-1, keepdim=True)
        best = x.sort(descending=True).values
        above = best.cumsum(-1) - 1
        size = torch.arange(1, x.shape[-1] + 1, device=x.device)
        held = (best * size > above).sum(-1, keepdim=True)
        p = (x - above.gather(-1, held - 1) / held).clamp(min=0)
        ctx.save_for_backward(p > 0)
        return p.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (support,) = ctx.saved_tensors
        return _support_vjp(grad, support).to(grad.dtype)


class _Entmax15(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        x = wide(z) / 2
        x = x - x.amax(-1, keepdim=True)
        best = x.sort(descending=True).values
        size = torch.arange(1, x.shape[-1] + 1, device=x.device)
        mean = best.cumsum(-1) / size
        spread = (best**2).cumsum(-1) - size * mean**2  # sum of squared distances to the mean
        tau = mean - ((1 - spread) / size).clamp(min=0).sqrt()
        held = (tau <= best).sum(-1, keepdim=True)
        p = (x - tau.gather(-1, held - 1)).clamp(min=0) ** 2
        ctx.save_for_backward(p)
        return p.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        slope = p.sqrt()
        d = wide(grad) * slope
        return (d - d.sum(-1, keepdim=True) / slope.sum(-1, keepdim=True) * slope).to(grad.dtype)


class _SparseK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, k: float | int | Tensor) -> Tensor:
        x = wide(z)
        if isinstance(k, Tensor):
            last = x.sort(descending=True).values.gather(-1, (k.ceil().long() - 1).expand(*x.shape[:-1], 1))
        else:
            last = x.kthvalue(x.shape[-1] - math.ceil(k) + 1, keepdim=True).values
        x = x - last
        x = x.clamp(-1, 1)  # tau lies in [-1, 0), so what is further away is 0 or 1 for certain, however far
        bend, order = torch.cat([x - 1, x], -1).sort()  # tau rises: at z_i - 1 it leaves 1, at z_i it is 0
        active = torch.where(order < x.shape[-1], 1, -1).cumsum(-1)
        lost = (active[..., :-1] * bend.diff()).cumsum(-1, dtype=torch.float64)
        mass = x.shape[-1] - torch.cat([torch.zeros_like(lost[..., :1]), lost], -1)  # the sum of p at each bend
        left = bend.gather(-1, (mass >= k).sum(-1, keepdim=True) - 1)
        free, full = (x - 1 <= left) & (x > left), x - 1 > left
        # right of that bend the same entries are free until k is met, so tau follows from them alone
        total = (x * free).sum(-1, keepdim=True) + full.sum(-1, keepdim=True) - k
        tau = torch.where(free.any(-1, keepdim=True), total / free.sum(-1, keepdim=True).clamp(min=1), left)
        p = (x - tau).clamp(0, 1)
        ctx.save_for_backward((p > 0) & (p < 1))
        return p.to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (free,) = ctx.saved_tensors
        return _support_vjp(grad, free).to(grad.dtype), None
