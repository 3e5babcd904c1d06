"""What index_top_k means: the scores of some queries, a stable sort, the first of it."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor

ROOM = 1 << 24  # scores of heads at a time


def index_top_k(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch keys dim"],
    weight: Float[Tensor, "batch heads queries"],
    at: Int32[Tensor, "batch keys"],
    now: Int32[Tensor, "batch queries"],
    top: int,
) -> Int32[Tensor, "batch queries chosen"]:
    (batch, heads, queries), keys = q.shape[:3], k.shape[1]
    wide, some = torch.promote_types(q.dtype, torch.float32), max(1, ROOM // max(1, batch * heads * keys))
    out = torch.full((batch, queries, top), -1, dtype=torch.int32, device=q.device)
    for i in range(0, queries, some):
        mine = slice(i, i + some)
        product = q[:, :, mine].to(wide) @ k.to(wide)[:, None].mT
        score = (product.clamp(min=0) * weight[:, :, mine, None].to(wide)).sum(1)
        able = (at[:, None] >= 0) & (at[:, None] <= now[:, mine, None])
        score = torch.where(able, score, -torch.inf) + 0.0  # makes -0.0 a plain zero
        best = score.sort(dim=-1, descending=True, stable=True).indices[..., :top]
        best = torch.where(able.gather(-1, best), best, keys).sort(-1).values
        out[:, mine] = torch.where(best < keys, best, -1).int()
    return out
