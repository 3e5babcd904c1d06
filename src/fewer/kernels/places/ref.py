"""What places means: a stable sort of what is kept before what is not."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


def places(keep: Bool[Tensor, "rows n"], k: int | None) -> Int64[Tensor, "rows k"]:
    count = keep.sum(1, keepdim=True)
    k = k if k is not None else int(count.max()) if count.numel() else 0
    first = keep.byte().argsort(dim=1, descending=True, stable=True)[:, :k]
    first = torch.nn.functional.pad(first, (0, k - first.shape[1]))
    return first.masked_fill(torch.arange(k, device=keep.device) >= count, -1)
