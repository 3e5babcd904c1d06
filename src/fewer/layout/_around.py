"""Block-diagonal matrices, which may stand around what a layout holds: `[blocks, size, size]`, in order."""

from jaxtyping import Float
from torch import Tensor, einsum


def blockwise(x: Float[Tensor, "*b n"], blocks: Float[Tensor, "m c c"]) -> Float[Tensor, "*b n"]:
    """x D^T with D block-diagonal: each piece of the last dimension goes through its own block.

    >>> import torch
    >>> swap, add = [[0.0, 1.0], [1.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]]
    >>> blockwise(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([swap, add]))
    tensor([2., 1., 7., 4.])
    """
    pieces = x.unflatten(-1, (len(blocks), -1))
    return einsum("...bi,boi->...bo", pieces, blocks).flatten(-2)


def put_around(
    w: Float[Tensor, "rows cols"], outer: Float[Tensor, "n b b"], inner: Float[Tensor, "m c c"]
) -> Float[Tensor, "rows cols"]:
    """A w B, with A = diag(outer) and B = diag(inner).

    >>> import torch
    >>> put_around(torch.eye(2), torch.full((2, 1, 1), 3.0), torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]))
    tensor([[3., 6.],
            [0., 3.]])
    """
    return blockwise(blockwise(w, inner.mT).mT, outer).mT
