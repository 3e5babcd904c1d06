"""What attend_blocks means: a mask of tokens, softmax."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels._scores import scores, softmax_of
from fewer.layout import Blocks


def attend_blocks(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys out"],
    blocks: Blocks,
    at: Int32[Tensor, "batch kv_heads keys"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    wide, heads = torch.promote_types(q.dtype, torch.float32), q.shape[1]
    (high, broad), (queries, keys) = blocks.block, blocks.lengths
    kinds = blocks.dense().repeat_interleave(high, 2).repeat_interleave(broad, 3)[..., :queries, :keys]
    kinds, place, k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (kinds, at, k, v))
    place, last = place[:, :, None], now[:, None, :, None]
    may = (place >= 0) & (place <= last)
    if window:
        may &= place > last - window
    reads = (kinds == 2) | ((kinds == 1) & may)
    out, lse = softmax_of(scores(q.to(wide), k.to(wide), scale, cap), reads, v.to(wide))
    return out.to(q.dtype), lse
