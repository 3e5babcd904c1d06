"""append_slots on the CPU: the same, in place."""

import torch
from jaxtyping import Float, Int, Int32, Shaped
from torch import Tensor


def append_slots(
    k: Float[Tensor, "batch kv_heads 1 dim"],
    v: Float[Tensor, "batch kv_heads 1 out"],
    at: Int32[Tensor, "batch 1"],
    keys: Shaped[Tensor, "pages page dim"],
    values: Shaped[Tensor, "pages page out"],
    places: Int32[Tensor, "pages page"],
    table: Int32[Tensor, "batch kv_heads reads"],
    end: Int[Tensor, "batch kv_heads"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    page = places.shape[1]
    named = table.gather(-1, torch.div(end, page, rounding_mode="floor")[..., None])[..., 0].long()
    where = (named * page + end % page).flatten()
    keys.view(-1, keys.shape[-1]).index_copy_(0, where, k.flatten(0, 2).to(keys.dtype))
    values.view(-1, values.shape[-1]).index_copy_(0, where, v.flatten(0, 2).to(values.dtype))
    places.view(-1).index_copy_(0, where, at.expand(end.shape).flatten())
    end += 1
    return keys, values, places, end
