"""page_bounds: how large scale q.k could be on a page, from the box that holds its keys."""

from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels._dispatch import run


def page_bounds(
    q: Float[Tensor, "batch heads queries dim"],
    low: Float[Tensor, "pages dim"],
    high: Float[Tensor, "pages dim"],
    table: Int32[Tensor, "batch kv_heads n"],
    scale: float,
) -> Float[Tensor, "batch heads n"]:
    """scale sum_d max(q_d low_d, q_d high_d) of each page in the table, the highest of the queries; -inf where it names none (-1).

    `low` and `high` are the least and the greatest key of each page, channel by channel; `scale` is positive. Arithmetic is
    in float32 at least.

    >>> import torch
    >>> q, box = torch.tensor([[[[1.0, -2.0]]]]), torch.tensor([[0.0, 1.0], [3.0, 4.0]])
    >>> page_bounds(q, box[:1], box[1:], torch.tensor([[[0, -1]]], dtype=torch.int32), 0.5)  # (3 - 2) / 2
    tensor([[[0.5000,   -inf]]])
    """
    return run("page_bounds", q, low, high, table, scale)
