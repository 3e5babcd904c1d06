"""top_k: True at the k largest of each row; ties go to the lower index on every backend."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewer.kernels._dispatch import run


def top_k(score: Float[Tensor, "*rows n"], k: int | Int[Tensor, "*rows"]) -> Bool[Tensor, "*rows n"]:
    """Mark the `k` largest of each row, exactly `min(k, n)` of them; `k` may differ from row to row and be 0.

    Infinities are numbers, -0.0 equals 0.0, and a NaN is the caller's mistake. No gradient passes.

    >>> import torch
    >>> top_k(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), 2).int()
    tensor([[0, 1, 1],
            [1, 1, 0]], dtype=torch.int32)
    >>> top_k(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), torch.tensor([1, 0])).int()
    tensor([[0, 1, 0],
            [0, 0, 0]], dtype=torch.int32)
    """
    return run("top_k", score.detach(), k)
