"""What feedback means: column by column."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def feedback(
    v: Float[Tensor, "in out"],
    u: Float[Tensor, "in in"],
    price: Float[Tensor, " in"],
    keep: Bool[Tensor, "in out"],
    n: int = 0,
    m: int = 0,
) -> tuple[Float[Tensor, "in out"], Bool[Tensor, "in out"]]:
    v, keep = v.clone(), keep.clone()
    for j in range(len(v)):
        if m and j % m == 0:
            cost = v[j : j + m].square() * price[j : j + m, None]
            best = cost.sort(dim=0, descending=True, stable=True).indices[:n]
            keep[j : j + m] = torch.zeros_like(keep[j : j + m]).scatter(0, best, True)
        v[j + 1 :].addr_(u[j, j + 1 :], v[j].masked_fill(keep[j], 0) / u[j, j], alpha=-1)
    return v, keep
