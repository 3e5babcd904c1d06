"""widen_boxes: the box around a page's keys takes in one more."""

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from fewer.kernels import backend_of, load


def widen_boxes(
    low: Shaped[Tensor, "batch kv_heads n dim"],
    high: Shaped[Tensor, "batch kv_heads n dim"],
    k: Float[Tensor, "batch kv_heads 1 dim"],
    end: Int[Tensor, "batch kv_heads"],
    size: int,
) -> None:
    """In place: `k` is the key of slot `end` - 1, in a page of `size`; the first of a page is all of its box.

    >>> import torch
    >>> low, high, end = torch.tensor([[[[1.0], [9.0]]]]), torch.tensor([[[[2.0], [9.0]]]]), torch.tensor([[2]])
    >>> widen_boxes(low, high, torch.tensor([[[[3.0]]]]), end, 2)
    >>> widen_boxes(low, high, torch.tensor([[[[5.0]]]]), end + 1, 2)
    >>> low.flatten(), high.flatten()
    (tensor([1., 5.]), tensor([3., 5.]))
    """
    for old, new in zip((low, high), load("widen_boxes", backend_of(k))(low, high, k, end, size), strict=True):
        if new is not old:
            old.copy_(new)
