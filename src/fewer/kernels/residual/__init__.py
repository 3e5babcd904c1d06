"""residual: what the chosen atoms of each row leave of it, and how much of each of them is still in that."""

from jaxtyping import Float
from torch import Tensor

from fewer.kernels import backend_of, load
from fewer.layout import Codes


def residual(
    codes: Codes, atoms: Float[Tensor, "size dim"], y: Float[Tensor, "rows dim"], bias: Float[Tensor, " dim"]
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows k"], Float[Tensor, " rows"]]:
    """error = y - bias - `decode(codes, atoms)` in the atoms' dtype, along = `correlate(error, atoms, index)`, missed_r = |error_r|^2.

    Of the sum of `missed`, -2 `along` is the gradient by the values, -2 `collect(codes, error)` that by the atoms.

    >>> import torch
    >>> codes = Codes(torch.tensor([[0, 1]]), torch.tensor([[2.0, 4.0]]), 2)
    >>> residual(codes, torch.eye(2), torch.tensor([[3.0, 5.0]]), torch.tensor([0.0, 1.0]))
    (tensor([[1., 0.]]), tensor([[1., 0.]]), tensor([1.]))
    """
    return load("residual", backend_of(codes.value, atoms, y))(codes, atoms, y, bias)
