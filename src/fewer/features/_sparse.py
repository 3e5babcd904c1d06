"""Codes that know their places: gradients through them touch only the rows of the matrices that were used.

A matrix that carries a list `owed` (see `train.rows`) is not given its gradient as a matrix: who used which row, and with
what, is put on the list.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer import kernels
from fewer.layout import Codes

Use = tuple[Codes, Tensor]  # `kernels.collect` of the two is the gradient


@dataclass(frozen=True, eq=False)
class Runs:
    """Parts of codes that are runs of their slots: to slot `ends[0]`, to `ends[1]`, ..., the last; and the parts' weights.

    >>> codes = Codes(torch.tensor([[4, 0, 7]]), torch.tensor([[3.0, 2.0, 1.0]]), 8)
    >>> [(w, part.index.tolist()) for w, part in Runs(codes, [1, 3], [0.5, 0.5])]
    [(0.5, [[4]]), (0.5, [[0, 7]])]
    """

    codes: Codes
    ends: Sequence[int]
    weights: Sequence[float]

    def __iter__(self) -> Iterator[tuple[float, Codes]]:
        index, value = self.codes.index, self.codes.value
        for weight, first, end in zip(self.weights, [0, *self.ends], self.ends, strict=False):
            yield weight, Codes(index[:, first:end], value[:, first:end], self.codes.size)


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


def narrowed(t: Tensor) -> Tensor:
    """As autocast multiplies it; what the optimizer left rounded beside a matrix (see `train.rows`) is not rounded again."""
    if not torch.is_autocast_enabled(t.device.type):
        return t
    kind, (small, version) = torch.get_autocast_dtype(t.device.type), getattr(t, "small", (None, None))
    return small if small is not None and small.dtype == kind and version == t._version else t.detach().to(kind)


def missed(
    codes: Codes,
    parts: Iterable[tuple[float, Codes]],
    atoms: Float[Tensor, "latents out"],
    y: Float[Tensor, "rows out"],
    bias: Float[Tensor, " out"],
) -> tuple[Float[Tensor, ""], Float[Tensor, "rows out"]]:
    """The mean square of what is left of `y` after each part, by the parts' weights, and what bias and codes leave in the end.

    Parts add up to the codes and speak one after another, as `Sparsifier.views` has it. The mean is differentiable, what is
    left is not. Parts that are `Runs` cost one look at the atoms there and one back, however many they are.
    """
    if isinstance(parts, Runs):
        weight = _at_ends(tuple(parts.ends), tuple(parts.weights), y.dtype, y.device)
        return _Missed.apply(parts.codes.value, atoms, parts.codes.index, y - bias, weight)
    parts = list(parts)
    if len(parts) == 1:
        return _Left.apply(codes.value, atoms, codes.index, y, bias)
    total, rest = y.new_zeros(()), y - bias
    for share, part in parts:
        rest = rest - spoken(part, atoms)
        total = total + share * rest.square().mean()
    return total, rest.detach()


@lru_cache
def _at_ends(ends: tuple[int, ...], weights: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Each run's weight at its last slot; kept, as to bring it to a GPU takes longer than to use it."""
    weight = torch.zeros(ends[-1], dtype=dtype)
    weight[torch.tensor(ends) - 1] = torch.tensor(weights, dtype=dtype)
    return weight.to(device)


def _gradient(w: Tensor, owed: list[Use] | None, codes: Codes, y: Tensor) -> Tensor | None:
    if owed is None:
        return kernels.collect(codes, y.to(w.dtype))
    owed.append((codes, y))
    return None


class _Said(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, index: Tensor, value: Tensor | None) -> Tensor:
        ctx.save_for_backward(narrowed(x), w, index)
        ctx.owed = getattr(w, "owed", None)
        return kernels.correlate(x, w, index) + b[index] if value is None else value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w, index = ctx.saved_tensors
        codes = Codes(index, grads[0].contiguous(), len(w))
        asked = ctx.needs_input_grad
        one = w.new_ones(len(x), 1)
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
        small = narrowed(atoms)
        ctx.save_for_backward(value, atoms, small, index)
        ctx.owed = getattr(atoms, "owed", None)
        return kernels.decode(Codes(index, value, len(atoms)), small)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, atoms, small, index = ctx.saved_tensors
        y = grads[0].contiguous()
        asked = ctx.needs_input_grad
        return (
            kernels.correlate(y, small, index).to(value.dtype) if asked[0] else None,
            _gradient(atoms, ctx.owed, Codes(index, value, len(atoms)), y.to(small.dtype)) if asked[1] else None,
            None,
        )


class _Left(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, atoms: Tensor, index: Tensor, y: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        error, along, each = kernels.residual(Codes(index, value, len(atoms)), narrowed(atoms), y, bias)
        ctx.save_for_backward(value, atoms, index, error, along)
        ctx.owed = getattr(atoms, "owed", None)
        ctx.mark_non_differentiable(error)
        ctx.set_materialize_grads(False)
        return each.sum() / max(1, y.numel()), error

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        value, atoms, index, error, along = ctx.saved_tensors
        asked, by = ctx.needs_input_grad, grads[0] * (-2 / max(1, error.numel()))
        uses = Codes(index, by * value, len(atoms))
        return (
            (by * along).to(value.dtype) if asked[0] else None,
            _gradient(atoms, ctx.owed, uses, error) if asked[1] else None,
            None,
            -by * error if asked[3] else None,
            by * error.sum(0, dtype=by.dtype) if asked[4] else None,
        )


class _Missed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, atoms: Tensor, index: Tensor, y: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        codes = Codes(index, value, len(atoms))
        each, slope, rest = kernels.prefixes(codes, narrowed(atoms), narrowed(y), weight)
        ctx.save_for_backward(value, atoms, index, slope, rest)
        ctx.owed = getattr(atoms, "owed", None)
        error = (rest[:, -1] / weight[-1]).to(y.dtype)
        ctx.mark_non_differentiable(error)
        ctx.set_materialize_grads(False)
        return (each.to(weight.dtype) @ weight).sum() / max(1, y.numel()), error

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        value, atoms, index, slope, rest = ctx.saved_tensors
        asked, by = ctx.needs_input_grad, grads[0] / max(1, rest[:, 0].numel())
        uses = Codes(index.reshape(-1, 1), (-2 * by * value).reshape(-1, 1), len(atoms))
        return (
            (by * slope).to(value.dtype) if asked[0] else None,
            _gradient(atoms, ctx.owed, uses, rest.flatten(0, 1)) if asked[1] else None,
            None,
            (2 * by * rest[:, 0]).to(value.dtype) if asked[3] else None,
            None,
        )
