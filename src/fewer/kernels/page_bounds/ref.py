"""What page_bounds means: gather the boxes, take the better corner of each channel."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor


def page_bounds(
    q: Float[Tensor, "batch heads queries dim"],
    low: Float[Tensor, "pages dim"],
    high: Float[Tensor, "pages dim"],
    table: Int32[Tensor, "batch kv_heads n"],
    scale: float,
) -> Float[Tensor, "batch heads n"]:
    wide = torch.promote_types(q.dtype, torch.float32)
    pages, (heads, kv_heads) = table.long().clamp(min=0), (q.shape[1], table.shape[1])
    least, most = (t[pages].to(wide).repeat_interleave(heads // kv_heads, 1).mT for t in (low, high))
    q = q.to(wide)
    bound = scale * (q.clamp(min=0) @ most + q.clamp(max=0) @ least).amax(2)
    return bound.masked_fill((table < 0).repeat_interleave(heads // kv_heads, 1), -torch.inf)
