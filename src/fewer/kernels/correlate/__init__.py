"""correlate: how much of each chosen atom is in a row; the gradient of `decode` by its values."""

from jaxtyping import Float, Int64
from torch import Tensor

from fewer.kernels import backend_of, load


def correlate(
    y: Float[Tensor, "rows dim"], atoms: Float[Tensor, "size dim"], index: Int64[Tensor, "rows k"]
) -> Float[Tensor, "rows k"]:
    """out_rj = <y_r, atoms[index[r, j]]>: a product of two matrices, at a few places of it.

    >>> import torch
    >>> correlate(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([[1, 0, 1]]))
    tensor([[2., 1., 2.]])
    """
    return load("correlate", backend_of(y, atoms))(y, atoms, index)
