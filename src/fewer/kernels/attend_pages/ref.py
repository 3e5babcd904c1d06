"""What attend_pages means: gather the pages, mask, softmax."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor


def attend_pages(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "pages page dim"],
    v: Float[Tensor, "pages page out"],
    at: Int32[Tensor, "pages page"],
    table: Int32[Tensor, "batch kv_heads reads"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    wide = torch.promote_types(q.dtype, torch.float32)
    pages = table.long().clamp(min=0)
    keys, values = (t[pages].flatten(2, 3).to(wide) for t in (k, v))
    place = torch.where(table[..., None] < 0, -1, at[pages]).flatten(2)[:, :, None, None]  # of each slot
    score = scale * q.to(wide).unflatten(1, (table.shape[1], -1)) @ keys[:, :, None].mT
    score = cap * torch.tanh(score / cap) if cap else score
    last = now[:, None, None, :, None]
    reads = (place >= 0) & (place <= last)
    if window:
        reads &= place > last - window
    score = score.masked_fill(~reads, -torch.inf)
    lse = score.logsumexp(-1) if score.shape[-1] else score.new_full(score.shape[:-1], -torch.inf)
    weight = (score - lse.clamp(min=torch.finfo(wide).min)[..., None]).exp()  # nothing to read: all zero
    return (weight @ values[:, :, None]).flatten(1, 2).to(q.dtype), lse.flatten(1, 2)
