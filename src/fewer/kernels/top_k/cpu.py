"""top_k on a processor: the k-th value of each row, then everything above it and the first of its equals."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def top_k(score: Float[Tensor, "*rows n"], k: int | Int[Tensor, "*rows"]) -> Bool[Tensor, "*rows n"]:
    n = score.shape[-1]
    k = torch.as_tensor(k, device=score.device).expand(score.shape[:-1]).clamp(max=n).unsqueeze(-1)
    most = int(k.max()) if k.numel() else 0
    if most < 1:
        return torch.zeros_like(score, dtype=torch.bool)
    last = score.topk(most).values.gather(-1, (k - 1).clamp(min=0))
    above, equal = score > last, score == last
    need = k - above.sum(-1, keepdim=True)
    return torch.where(k > 0, above | (equal & (equal.cumsum(-1) <= need)), False)
