"""page_bounds: the largest q.k that the boxes of pages allow, for the heads and queries that share a key-value head."""

from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels import backend_of, load


def page_bounds(
    q: Float[Tensor, "batch heads queries dim"],
    low: Float[Tensor, "pages dim"],
    high: Float[Tensor, "pages dim"],
    table: Int32[Tensor, "batch kv_heads reads"],
) -> Float[Tensor, "batch kv_heads reads"]:
    """max over q of sum_i max(q_i low_i, q_i high_i), for each page that `table` names; -inf where it names none (-1).

    `low` and `high` are the least and the greatest of a page's keys in each channel: no key of the page has a larger q.k
    with any of the queries, over all heads of the group. Arithmetic is in float32 at least.

    Keys (1, 0) and (3, -2), the query (1, -1): 3 + 2.

    >>> import torch
    >>> low, high = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 0.0]])
    >>> table = torch.tensor([[[0, -1]]], dtype=torch.int32)
    >>> page_bounds(torch.tensor([[[[1.0, -1.0]]]]), low, high, table)
    tensor([[[5., -inf]]])
    """
    return load("page_bounds", backend_of(q, low, high))(q, low, high, table)
