"""collect: each atom gathers the rows that used it; the gradient of `decode` by its atoms."""

from jaxtyping import Float
from torch import Tensor

from fewer.kernels import backend_of, load
from fewer.layout import Codes


def collect(codes: Codes, y: Float[Tensor, "rows dim"]) -> Float[Tensor, "size dim"]:
    """out_i = sum over r, j with `index[r, j] == i` of `value[r, j] * y_r`, in the order of r and j: the same bits each time.

    >>> import torch
    >>> codes = Codes(torch.tensor([[0], [2], [0]]), torch.tensor([[2.0], [1.0], [3.0]]), 3)
    >>> collect(codes, torch.tensor([[1.0], [10.0], [100.0]])).flatten()
    tensor([302.,   0.,  10.])
    """
    return load("collect", backend_of(codes.value, y))(codes, y)
