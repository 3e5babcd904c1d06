"""How a gradient passes a selection: straight through, to the survivors only, or by a jump's pseudo-derivative."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def straight_through(score: Float[Tensor, "*shape"], keep: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The selection as zeros and ones, whose gradient is handed to the scores as if nothing had been rounded.

    Bengio, Leonard and Courville 2013 (1308.3432). For learnt masks: `w * straight_through(score, select(score, b))`.

    >>> score = torch.tensor([0.2, 0.9], requires_grad=True)
    >>> mask = straight_through(score, score > 0.5)
    >>> (mask * torch.tensor([3.0, 4.0])).sum().backward()
    >>> mask.tolist(), score.grad.tolist()
    ([0.0, 1.0], [3.0, 4.0])
    """
    return _StraightThrough.apply(score, keep)


def masked(x: Float[Tensor, "*shape"], keep: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` where kept, else 0; only survivors learn. Unlike `x * keep`, what is dropped is 0 even if it was infinite.

    >>> x = torch.tensor([2.0, torch.inf], requires_grad=True)
    >>> y = masked(x, torch.tensor([True, False]))
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([2.0, 0.0], [1.0, 0.0])
    """
    return torch.where(keep, x, 0.0)


def revivable(x: Float[Tensor, "*shape"], keep: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` where kept, else 0; all learn, so that what was dropped may come back.

    The straight-through estimator on the values themselves (Zhou et al. 2021, SR-STE, 2102.04010, eq. 4).

    >>> x = torch.tensor([2.0, 3.0], requires_grad=True)
    >>> y = revivable(x, torch.tensor([True, False]))
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([2.0, 0.0], [1.0, 1.0])
    """
    return _Revivable.apply(x, keep)


def jump(
    z: Float[Tensor, "*rows n"], threshold: Float[Tensor, "..."], bandwidth: float | int = 1e-3
) -> Float[Tensor, "*rows n"]:
    """JumpReLU: `z` where it is above `threshold`, else 0; the threshold learns from what is near it.

    d/dz = H(z - theta); d/dtheta := -(theta / eps) K((z - theta) / eps), with K the rectangle that is 1 on
    (-1/2, 1/2). Rajamanoharan et al. 2024 (2407.14435), eq. 11. `threshold` broadcasts against `z`.

    >>> theta = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> jump(torch.tensor([[1.2, 3.0]]), theta, bandwidth=0.5).sum().backward()
    >>> theta.grad.tolist()  # -(1 / 0.5) for the one within 0.25 of its threshold
    [-2.0, 0.0]
    """
    return _Jump.apply(z, threshold, bandwidth)


def step(
    z: Float[Tensor, "*rows n"], threshold: Float[Tensor, "..."], bandwidth: float | int = 1e-3
) -> Float[Tensor, "*rows n"]:
    """Heaviside: 1 where `z` is above `threshold`; its sum is JumpReLU's L0 penalty, a gradient for the threshold.

    d/dz = 0; d/dtheta := -(1 / eps) K((z - theta) / eps). Rajamanoharan et al. 2024 (2407.14435), eq. 12.

    >>> theta = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> step(torch.tensor([[0.8, 3.0]]), theta, bandwidth=0.5).sum().backward()
    >>> theta.grad.tolist()
    [-2.0, 0.0]
    """
    return _Step.apply(z, threshold, bandwidth)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score: Tensor, keep: Tensor) -> Tensor:
        return keep.to(score.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Revivable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep, x, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(z > threshold, z, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        z, threshold = ctx.saved_tensors
        pull = -(threshold / ctx.bandwidth) * _near(z, threshold, ctx.bandwidth)
        return torch.where(z > threshold, grad, 0.0), (grad * pull).sum_to_size(threshold.shape), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        z, threshold = ctx.saved_tensors
        pull = _near(z, threshold, ctx.bandwidth) / -ctx.bandwidth
        return None, (grad * pull).sum_to_size(threshold.shape), None


def _near(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """The rectangle kernel K((z - theta) / eps)."""
    return ((z - threshold).abs() < bandwidth / 2).to(z.dtype)
