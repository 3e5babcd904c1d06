"""What attend_pages means: gather the pages, mask, softmax."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels._scores import scores, softmax_of


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
    bias: Float[Tensor, "batch heads slots"] | None = None,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    wide = torch.promote_types(q.dtype, torch.float32)
    pages = table.long().clamp(min=0)
    keys, values = (t[pages].flatten(2, 3).to(wide) for t in (k, v))
    place = torch.where(table[..., None] < 0, -1, at[pages]).flatten(2)[:, :, None, None]  # of each slot
    score = scores(q.to(wide).unflatten(1, (table.shape[1], -1)), keys[:, :, None], scale, cap)
    last = now[:, None, None, :, None]
    reads = (place >= 0) & (place <= last)
    if window:
        reads &= place > last - window
    if bias is not None:
        more = bias.to(wide).unflatten(1, (table.shape[1], -1))[:, :, :, None]
        reads, score = reads & (more > -torch.inf), score + more.clamp(min=-1e9)
    out, lse = softmax_of(score, reads, values[:, :, None])
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)
