"""Everything, zeros too: so that "leave it dense" is one of the choices."""

from jaxtyping import Bool, Shaped
from torch import Tensor

from ._base import Layout, layout
from ._bits import same_shape


@layout
class Dense(Layout):
    """Right if most is kept, and wherever the dense product is fastest.

    There is no mask: `keep()` is where `value` is not zero, so zeros that were kept are dropped here, and only here and
    in `Codes`.

    Bytes: numel · itemsize.

    >>> import torch
    >>> d = Dense.pack(torch.tensor([[5.0, 2.0]]), torch.tensor([[True, False]]))
    >>> d.value.tolist(), d.keep().tolist(), d.bytes
    ([[5.0, 0.0]], [[True, False]], 8)
    """

    value: Shaped[Tensor, "*rows n"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @classmethod
    def pack(cls, x: Shaped[Tensor, "*rows n"], keep: Bool[Tensor, "*rows n"]) -> "Dense":
        same_shape(x, keep)
        return cls(x.masked_fill(~keep, 0))

    def dense(self) -> Shaped[Tensor, "*rows n"]:
        return self.value

    def keep(self) -> Bool[Tensor, "*rows n"]:
        return self.value != 0

    @classmethod
    def bytes_for(cls, shape: tuple[int, int], kept: int, itemsize: int) -> int:
        """The bytes of the whole matrix, however much is kept."""
        return shape[0] * shape[1] * itemsize
