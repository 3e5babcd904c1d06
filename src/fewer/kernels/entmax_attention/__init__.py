"""entmax_attention: attention whose weights are alpha-entmax of the scores, so that most of them are exactly zero."""

from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels import backend_for, load


def entmax_attention(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys out"],
    alpha: float | Float[Tensor, " heads"],
    at: Int32[Tensor, "batch kv_heads keys"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> Float[Tensor, "batch heads queries out"]:
    """p v with p = max((alpha - 1) s - tau, 0)^(1 / (alpha - 1)), s = scale q.k, and tau such that p sums to 1.

    `alpha` is above 1, one for all or one for each head: near 1 it is softmax, 2 is sparsemax. The query at `now` reads the key at `at` if
    0 <= at <= now and, with a `window`, at > now - window. `cap` > 0 bounds scores: cap tanh(s / cap). Who may read nothing gets 0.
    Arithmetic is in float32 at least. q, k, v have gradients and so has an `alpha` that is a tensor.

    ValueError: an alpha that is not above 1.

    One query, scores 1, 0.5 and -1, sparsemax: three quarters, a quarter, nothing.

    >>> import torch
    >>> k, v = torch.tensor([[[[1.0], [0.5], [-1.0]]]]), torch.tensor([[[[4.0], [8.0], [99.0]]]])
    >>> place = torch.arange(3, dtype=torch.int32)[None, None]
    >>> out = entmax_attention(torch.ones(1, 1, 1, 1), k, v, 2.0, place, place[0, :, 2:], scale=1.0)
    >>> print(f"{out.item():.3f}")
    5.000
    """
    smallest = float(alpha.detach().min()) if isinstance(alpha, Tensor) else alpha
    if not smallest > 1:
        raise ValueError(f"entmax_attention needs alpha above 1, not {smallest}; alpha = 1 is softmax")
    backend = backend_for("entmax_attention", q, k, v, *([alpha] if isinstance(alpha, Tensor) else []))
    return load("entmax_attention", backend)(q, k, v, alpha, at, now, scale, window, cap)
