"""Codes that know their places: gradients through them touch only the rows of the matrices that were used.

A matrix that carries a list `owed` (see `train.rows`) is not given its gradient as a matrix: who used which row, and with
what, is put on the list.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer import kernels
from fewer.layout import Codes

Use = tuple[Codes, Tensor]  # `kernels.collect` of the two is the gradient


def said(
    x: Float[Tensor, "rows in"],
    w: Float[Tensor, "latents in"],
    b: Float[Tensor, " latents"],
    index: Int64[Tensor, "rows k"],
    value: Float[Tensor, "rows k"] | None = None,
) -> Float[Tensor, "rows k"]:
    """Pre-activations at `index` alone, differentiable; `value` if they are known already."""
    return _Said.apply(x, w, b, index, value)


def spoken(codes: Codes, atoms: Float[Tensor, "latents out"]) -> Float[Tensor, "rows out"]:
    """`kernels.decode`, differentiable by values and atoms."""
    return _Spoken.apply(codes.value, atoms, codes.index)


def _gradient(w: Tensor, owed: list[Use] | None, codes: Codes, y: Tensor) -> Tensor | None:
    if owed is None:
        return kernels.collect(codes, y)
    owed.append((codes, y))
    return None


class _Said(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, index: Tensor, value: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, w, index)
        ctx.owed = getattr(w, "owed", None)
        return kernels.correlate(x, w, index) + b[index] if value is None else value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w, index = ctx.saved_tensors
        codes = Codes(index, grads[0].contiguous(), len(w))
        asked = ctx.needs_input_grad
        one = x.new_ones(len(x), 1)
        return (
            kernels.decode(codes, w) if asked[0] else None,
            _gradient(w, ctx.owed, codes, x) if asked[1] else None,
            kernels.collect(codes, one)[:, 0] if asked[2] else None,
            None,
            None,
        )


class _Spoken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, atoms: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(value, atoms, index)
        ctx.owed = getattr(atoms, "owed", None)
        return kernels.decode(Codes(index, value, len(atoms)), atoms)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, atoms, index = ctx.saved_tensors
        y = grads[0].contiguous()
        asked = ctx.needs_input_grad
        return (
            kernels.correlate(y, atoms, index) if asked[0] else None,
            _gradient(atoms, ctx.owed, Codes(index, value, len(atoms)), y) if asked[1] else None,
            None,
        )
