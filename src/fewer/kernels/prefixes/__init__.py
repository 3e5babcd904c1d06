"""prefixes: what the first, the first two, ... of each row's atoms miss of it, and all gradients of that in the same pass."""

from jaxtyping import Float
from torch import Tensor

from fewer.kernels import backend_of, load
from fewer.layout import Codes


def prefixes(
    codes: Codes, atoms: Float[Tensor, "size dim"], y: Float[Tensor, "rows dim"], weight: Float[Tensor, " k"]
) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows k"], Float[Tensor, "rows k dim"]]:
    """`missed`, `slope` and `rest` of the prefixes of each row's codes, in the order in which they stand.

    With e_rj = y_r - sum over i <= j of `value[r, i] * atoms[index[r, i]]`: missed_rj = |e_rj|^2, rest_ri = sum over
    j >= i of weight_j e_rj, and slope_ri = -2 <atoms[index[r, i]], rest_ri>. Of the sum of weight_j missed_rj over r and j,
    `slope` is the gradient by `value`, 2 rest_r1 that by y_r, and -2 value_ri rest_ri what slot i adds to that of its atom:
    `collect` of (index, value) as rows * k rows of one and -2 `rest` as rows * k rows.

    Two atoms along the axes and y = (3, 4): the first at 3 leaves (0, 4), both leave nothing.

    >>> import torch
    >>> codes = Codes(torch.tensor([[0, 1]]), torch.tensor([[3.0, 4.0]]), 2)
    >>> missed, slope, rest = prefixes(codes, torch.eye(2), torch.tensor([[3.0, 4.0]]), torch.ones(2))
    >>> missed, slope, rest.tolist()
    (tensor([[16.,  0.]]), tensor([[-0., -0.]]), [[[0.0, 4.0], [0.0, 0.0]]])
    """
    return load("prefixes", backend_of(codes.value, atoms, y))(codes, atoms, y, weight)
