"""places: where the kept ones of each row stand."""

from jaxtyping import Bool, Int64
from torch import Tensor

from fewer.kernels import backend_of, load


def places(keep: Bool[Tensor, "rows n"], k: int | None = None) -> Int64[Tensor, "rows k"]:
    """The first `k` columns at which a row is True, from the left; -1 where it has no more. By default k is what the fullest row has.

    >>> import torch
    >>> places(torch.tensor([[True, False, True], [False, False, True]]))
    tensor([[ 0,  2],
            [ 2, -1]])
    """
    return load("places", backend_of(keep))(keep, k)
