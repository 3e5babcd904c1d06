"""encode: the k largest pre-activations of each row, without keeping all of them."""

from jaxtyping import Float, Int64
from torch import Tensor

from fewer.kernels import backend_of, load


def encode(
    x: Float[Tensor, "rows in"],
    w: Float[Tensor, "size in"],
    b: Float[Tensor, " size"],
    k: int,
    by_size: bool = False,
) -> tuple[Int64[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Where the `min(k, size)` largest of x W^T + b stand in each row, from the left, and what they are; no gradient passes.

    Ties go to the lower index. `by_size`: the largest by |x W^T + b|, with their signs. A NaN is the caller's mistake.

    >>> import torch
    >>> x, w, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0], [-4.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), torch.zeros(4)
    >>> encode(x, w, b, 2)
    (tensor([[0, 2]]), tensor([[3., 4.]]))
    >>> encode(x, w, b, 2, by_size=True)  # -4 comes before the 4
    (tensor([[1, 2]]), tensor([[-4.,  4.]]))
    """
    x, w, b = x.detach(), w.detach(), b.detach()
    return load("encode", backend_of(x, w))(x, w, b, min(k, len(w)), by_size)
