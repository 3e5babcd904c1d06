"""A model made linear for its gradients: what attention looks at and what norms divide by are taken as given."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

GIVEN = {  # attention patterns and gates of experts; the denominators of norms that are spelt out
    *(torch.softmax, F.softmax, Tensor.softmax),
    *(torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt),
}
POWERS = {torch.pow, Tensor.pow, Tensor.__pow__}


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """While this is open, what is computed is the same, but gradients take attention patterns and norms' scales as constants.

    A softmax, the root in a norm and the q and k of fused attention pass no gradient, whatever the model is called: the
    torch functions themselves are met, not modules. What is left is linear between MLPs, if the MLPs are cut out.
    Softcaps, gates made with a sigmoid and MLPs stay as they are.

    >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> with frozen():
    ...     y = F.rms_norm(x, (2,), eps=0.0)  # x / sqrt(12.5)
    >>> torch.autograd.grad(y[0], x)[0] * 12.5**0.5  # 1 and 0: the scale is a constant
    tensor([1., 0.])
    """
    with _Frozen():
        yield


class _Frozen(TorchFunctionMode):
    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in GIVEN:
            return func(*args, **kwargs).detach()
        if func in POWERS and len(args) == 2 and args[1] in (0.5, -0.5):
            return func(*args, **kwargs).detach()
        linear = LINEAR.get(func)
        return linear(*args, **kwargs) if linear else func(*args, **kwargs)


def _layer_norm(
    x: Tensor,
    shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *unused: Any,
) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    about = x - x.mean(dims, keepdim=True)
    y = about * (about.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    dims = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * (x.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    return y if weight is None else y * weight


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Fused attention with its pattern spelt out, so that batched gradients by v are one product."""
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    with torch.no_grad():
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
            scores = scores.masked_fill(~seen, -torch.inf)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        pattern = scores.softmax(-1).nan_to_num(0.0)  # a row that sees nobody says nothing
    return pattern.to(v.dtype) @ v


LINEAR: dict[Callable, Callable] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.nn.functional.scaled_dot_product_attention: _attention,
}
