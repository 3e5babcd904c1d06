"""What widen_boxes means. It returns what becomes of each; other backends write in place."""

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
    least, most = (
        torch.where(first, k, f(k, d.gather(2, where))) for f, d in ((torch.minimum, low), (torch.maximum, high))
    )
    return low.scatter(2, where, least), high.scatter(2, where, most)
