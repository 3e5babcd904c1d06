"""What best_pages means: softmax, mean over the group, top k, in order."""

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor


def best_pages(
    score: Float[Tensor, "batch heads n"],
    table: Int32[Tensor, "batch kv_heads n"],
    k: int,
    end: Int[Tensor, "batch kv_heads"] | None = None,
    size: int = 1,
) -> Int32[Tensor, "batch kv_heads reads"]:
    if end is not None:
        own = torch.div(end + size - 1, size, rounding_mode="floor")[..., None] - 1
        later = torch.arange(score.shape[-1], device=score.device) >= own
        score = score.masked_fill(later.repeat_interleave(score.shape[1] // own.shape[1], 1), -torch.inf)
        newest = table.gather(-1, own.clamp(min=0)).masked_fill(own < 0, -1)
        return torch.cat([best_pages(score, table, k - 1), newest], -1)[..., -k:]
    grouped = score.to(torch.promote_types(score.dtype, torch.float32)).unflatten(1, (table.shape[1], -1))
    able = (grouped > -torch.inf).any(2)
    mean = sum(grouped.softmax(-1).nan_to_num().unbind(2)) / grouped.shape[2]  # head by head: equal columns stay equal
    rank = torch.where(able, mean, -1.0)
    first = rank.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    order = torch.where(able.gather(-1, first), first, table.shape[-1]).sort(-1).values
    return torch.nn.functional.pad(table, (0, 1), value=-1).gather(-1, order)
