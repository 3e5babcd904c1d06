"""What attend_chosen means: gather what each query chose, mask, softmax; some queries at a time."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewer.kernels._scores import scores, softmax_of

ROOM = 1 << 24  # numbers that are gathered at a time, and again on the way back


def attend_chosen(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys out"],
    index: Int32[Tensor, "batch kv_heads queries reads"],
    block: int,
    at: Int32[Tensor, "batch kv_heads keys"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    batch, kv_heads, queries, reads = index.shape
    some = max(1, ROOM // max(1, batch * kv_heads * reads * block * max(k.shape[-1], v.shape[-1])))

    def part(q: Tensor, k: Tensor, v: Tensor, index: Tensor, now: Tensor) -> tuple[Tensor, Tensor]:
        return _some(q, k, v, index, block, at, now, scale, window, cap)

    parts = []
    for i in range(0, max(queries, 1), some):
        mine = slice(i, i + some)
        args = q[:, :, mine], k, v, index[:, :, mine], now[:, mine]
        parts.append(checkpoint(part, *args, use_reentrant=False, preserve_rng_state=False))
    out, lse = (torch.cat(p, 2) for p in zip(*parts, strict=True))
    return out, lse


def _some(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, block: int, at: Tensor, now: Tensor, scale: float, window: int, cap: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide, keys = torch.promote_types(q.dtype, torch.float32), k.shape[2]
    index = index if keys else index[..., :0]
    token = (index.long()[..., None] * block + torch.arange(block, device=index.device)).flatten(3)
    there = (token >= 0) & (token < keys)  # the last block may be short
    token = token.clamp(0, max(keys - 1, 0))

    def of_each(x: Tensor) -> Tensor:
        flat = token.flatten(2)[..., None].expand(-1, -1, -1, x.shape[-1])
        return x.gather(2, flat).unflatten(2, token.shape[2:])

    place = torch.where(there, of_each(at[..., None]).squeeze(-1), -1)[..., None, :]
    last = now[:, None, :, None, None]
    reads = (place >= 0) & (place <= last)
    if window:
        reads &= place > last - window
    grouped = q.to(wide).unflatten(1, (k.shape[1], -1)).transpose(2, 3)
    out, lse = softmax_of(scores(grouped, of_each(k).to(wide), scale, cap), reads, of_each(v).to(wide))
    return out.transpose(2, 3).flatten(1, 2).to(q.dtype), lse.transpose(2, 3).flatten(1, 2)
