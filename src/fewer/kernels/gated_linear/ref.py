"""What gated_linear means: inputs at or below the cut are zeros."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional as F


def gated_linear(
    x: Float[Tensor, "*b n_in"],
    w: Float[Tensor, "n_out n_in"] | Int8[Tensor, "n_out n_in"],
    reach: Float[Tensor, " n_in"] | None = None,
    cut: float = 0.0,
    scale: Float[Tensor, " n_out"] | None = None,
    bias: Float[Tensor, " n_out"] | None = None,
) -> Float[Tensor, "*b n_out"]:
    size = x.abs() if reach is None else x.abs() * reach.to(x.dtype)
    y = F.linear(torch.where(size > cut, x, 0), w.to(x.dtype))
    y = y if scale is None else y * scale.to(x.dtype)
    return y if bias is None else y + bias.to(x.dtype)
