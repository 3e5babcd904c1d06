"""What top_k means: sort each row stably, best first, and mark the first k."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def top_k(score: Float[Tensor, "*rows n"], k: int | Int[Tensor, "*rows"]) -> Bool[Tensor, "*rows n"]:
    best_first = (score + 0.0).argsort(dim=-1, descending=True, stable=True)  # + 0.0 makes -0.0 a plain zero
    rank = best_first.argsort(dim=-1)
    return rank < torch.as_tensor(k, device=score.device).unsqueeze(-1)
