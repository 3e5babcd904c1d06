"""index_top_k: the keys that a lightning indexer thinks most of, for each query, without the matrix of its scores."""

from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels._dispatch import run


def index_top_k(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch keys dim"],
    weight: Float[Tensor, "batch heads queries"],
    at: Int32[Tensor, "batch keys"],
    now: Int32[Tensor, "batch queries"],
    top: int,
) -> Int32[Tensor, "batch queries chosen"]:
    """The `min(top, keys)` keys of each query with the highest score, ascending; -1 follows where fewer may be read.

    score = sum over heads of weight * max(q . k, 0) (DeepSeek-V3.2, the lightning indexer); factors above 0 that are the same for all keys
    change nothing and may be left out. The query at `now` may read the key at `at` if 0 <= at <= now. Ties go to the lower key.
    Scores are in float32 at least; where two are equal but for rounding, backends may choose differently. No gradient passes.

    Two heads, three keys, the last query: scores 2, 1 and 3.

    >>> import torch
    >>> k = torch.tensor([[[1.0, 0.0], [-1.0, 1.0], [1.0, 1.0]]])
    >>> q, weight = torch.eye(2)[None, :, None], torch.tensor([[[2.0], [1.0]]])
    >>> place = torch.arange(3, dtype=torch.int32)[None]
    >>> index_top_k(q, k, weight, place, place[:, 2:], 2), index_top_k(q, k, weight, place, place[:, :1], 2)
    (tensor([[[0, 2]]], dtype=torch.int32), tensor([[[ 0, -1]]], dtype=torch.int32))
    """
    return run("index_top_k", q.detach(), k.detach(), weight.detach(), at, now, min(top, k.shape[1]))
