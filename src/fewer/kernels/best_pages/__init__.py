"""best_pages: the table of the pages that a group of heads thinks most of."""

from jaxtyping import Float, Int, Int32
from torch import Tensor

from fewer.kernels._dispatch import run


def best_pages(
    score: Float[Tensor, "batch heads n"],
    table: Int32[Tensor, "batch kv_heads n"],
    k: int,
    end: Int[Tensor, "batch kv_heads"] | None = None,
    size: int = 1,
) -> Int32[Tensor, "batch kv_heads reads"]:
    """The `min(k, n)` pages of each key-value head with the highest mean, over its group's heads, of softmax(score), in the table's order.

    Ties go to the front of the table. A score of -inf is a page that is not to be read; where fewer than k can be, -1 follows. The
    softmax is taken in float32, whose last bit backends may round apart. No gradient passes.

    With `end`, the slots that a head has filled in pages of `size`, its newest page is chosen whatever its score, and stands last;
    none from there on is ranked.

    One head likes the second page, the other the third:

    >>> import torch
    >>> score = torch.tensor([[[0.0, 5.0, 0.0, -9.0], [0.0, 0.0, 6.0, -9.0]]])
    >>> best_pages(score, torch.tensor([[[7, 8, 9, 10]]], dtype=torch.int32), 2)
    tensor([[[8, 9]]], dtype=torch.int32)
    >>> best_pages(score, torch.tensor([[[7, 8, 9, 10]]], dtype=torch.int32), 2, torch.tensor([[60]]), 16)
    tensor([[[ 9, 10]]], dtype=torch.int32)
    """
    return run("best_pages", score.detach(), table, min(k, table.shape[-1]), end, size)
