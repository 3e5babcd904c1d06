"""What page_bounds means: the better side of each box, channel by channel."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor


def page_bounds(
    q: Float[Tensor, "batch heads queries dim"],
    low: Float[Tensor, "pages dim"],
    high: Float[Tensor, "pages dim"],
    table: Int32[Tensor, "batch kv_heads reads"],
) -> Float[Tensor, "batch kv_heads reads"]:
    wide = torch.promote_types(q.dtype, torch.float32)
    few = q.to(wide).unflatten(1, (table.shape[1], -1)).flatten(2, 3)[:, :, :, None]
    least, most = (t[table.long().clamp(min=0)].to(wide)[:, :, None] for t in (low, high))
    bound = torch.maximum(few * least, few * most).sum(-1).amax(2)
    return bound.masked_fill(table < 0, -torch.inf)
