"""sparse_linear: a linear map whose weights are stored in a layout."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels._dispatch import is_forced, load, plan, run, tensors_of
from fewer.layout import Layout

MANY = 64  # kinds of inputs that are remembered for a weight


def sparse_linear(
    x: Float[Tensor, "*b n_in"], w: Layout, bias: Float[Tensor, " n_out"] | None = None
) -> Float[Tensor, "*b n_out"]:
    """Multiply by a packed weight: `y = x @ w.dense().T + bias`, in the dtype of `x`, summed in float32 or better.

    Weights may be stored smaller than `x` (bfloat16 or int8 under a float32 `x`). Differentiable in `x`, `bias` and the
    stored values. Raises `ValueError` when the shapes do not meet.

    >>> import torch
    >>> from fewer.layout import Csr
    >>> w = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    >>> sparse_linear(torch.tensor([[1.0, 1.0, 10.0]]), Csr.pack(w, w != 0))
    tensor([[21.,  0.]])
    """
    if (do := ready(x, w, bias)) is not None:
        return do(x, w, bias)
    if x.shape[-1] != w.shape[-1]:
        raise ValueError(
            f"x has {x.shape[-1]} features and the weight takes {w.shape[-1]}: give x [..., {w.shape[-1]}]"
        )
    if bias is not None and bias.shape != (w.shape[0],):
        raise ValueError(
            f"the bias is {list(bias.shape)} and the weight gives {w.shape[0]}: give one of [{w.shape[0]}]"
        )
    return run("sparse_linear", x, w, bias)


_known: "weakref.WeakKeyDictionary[Layout, dict[tuple[Any, ...], Callable[..., Tensor]]]" = weakref.WeakKeyDictionary()


def ready(x: Tensor, w: Layout, bias: Tensor | None) -> Callable[..., Tensor] | None:
    """What was chosen before for this weight and inputs of this kind, where no gradient is wanted and nothing is forced."""
    if is_forced() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors_of((x, w, bias)))):
        return None
    kind = (x.shape, x.dtype, x.device, None if bias is None else bias.shape)
    known = _known.setdefault(w, {})
    if kind not in known:
        fits = x.shape[-1] == w.shape[-1] and kind[-1] in (None, (w.shape[0],))
        if not fits or len(known) >= MANY:
            return None
        known[kind] = load("sparse_linear", plan("sparse_linear", x, w).backend)
    return known[kind]
