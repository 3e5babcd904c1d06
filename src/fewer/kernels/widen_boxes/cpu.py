"""widen_boxes on the CPU: the same, in place."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


def widen_boxes(
    low: Shaped[Tensor, "batch kv_heads n dim"],
    high: Shaped[Tensor, "batch kv_heads n dim"],
    k: Float[Tensor, "batch kv_heads 1 dim"],
    end: Int[Tensor, "batch kv_heads"],
    size: int,
) -> tuple[Tensor, Tensor]:
    slot, k = end - 1, k.to(low.dtype)
    where = torch.div(slot, size, rounding_mode="floor")[..., None, None].expand_as(k)
    first = (slot % size == 0)[..., None, None]
    low.scatter_(2, where, torch.where(first, k, k.minimum(low.gather(2, where))))
    high.scatter_(2, where, torch.where(first, k, k.maximum(high.gather(2, where))))
    return low, high
