"""What entmax_attention means: scores, a mask of tokens, entmax; some queries at a time."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewer.kernels._entmax import Entmax
from fewer.kernels._scores import scores

ROOM = 1 << 24  # scores at a time


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
    (batch, heads, queries), keys = q.shape[:3], k.shape[2]
    if not keys:
        return q.new_zeros(*q.shape[:3], v.shape[-1])
    power = torch.as_tensor(alpha, dtype=None if isinstance(alpha, Tensor) else torch.float64, device=q.device)

    def part(q: Tensor, k: Tensor, v: Tensor, power: Tensor, now: Tensor) -> Tensor:
        return _some(q, k, v, power, at, now, scale, window, cap)

    parts, some = [], max(1, ROOM // max(1, batch * heads * keys))
    for i in range(0, max(queries, 1), some):
        mine = slice(i, i + some)
        args = q[:, :, mine], k, v, power, now[:, mine]
        parts.append(checkpoint(part, *args, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts, 2)


def _some(
    q: Tensor, k: Tensor, v: Tensor, power: Tensor, at: Tensor, now: Tensor, scale: float, window: int, cap: float
) -> Tensor:
    wide, kv_heads = torch.promote_types(q.dtype, torch.float32), k.shape[1]
    place, last = at[:, :, None, None], now[:, None, None, :, None]
    reads = (place >= 0) & (place <= last)
    if window:
        reads &= place > last - window
    score = scores(q.to(wide).unflatten(1, (kv_heads, -1)), k.to(wide)[:, :, None], scale, cap)
    score = score.masked_fill(~reads & reads.any(-1, keepdim=True), -torch.inf)  # who reads nothing: any numbers
    p = Entmax.apply(score, power.expand(q.shape[1]).view(kv_heads, -1, 1, 1)) * reads
    return (p @ v.to(wide)[:, :, None]).flatten(1, 2).to(q.dtype)
