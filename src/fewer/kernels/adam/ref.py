"""What adam means: the gradient written down, then the textbook. It returns what becomes of each; other backends write in place."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels.collect.ref import collect
from fewer.layout import Codes

from . import Move

Rows = Float[Tensor, "size dim"]


def adam(
    w: Rows, first: Rows, second: Rows, codes: Codes | None, y: Float[Tensor, "rows dim"], move: Move
) -> tuple[Rows, Rows, Rows]:
    g = y if codes is None else collect(codes, y)
    if move.unit:
        g = g - (g * w).sum(1, keepdim=True) * w
    first, second = (
        torch.lerp(old, new, 1 - beta) for old, new, beta in zip((first, second), (g, g * g), move.betas, strict=True)
    )
    a, b = move.corrected
    w = w - move.rate * (first * a) / ((second * b).sqrt() + move.eps)
    return w / w.norm(dim=1, keepdim=True) if move.unit else w, first, second
