"""One bit per weight says whether it is there."""

from jaxtyping import Bool, Integer, Shaped, UInt8
from torch import Tensor

from ._base import Layout, layout
from ._bits import pack_bits, same_shape, start_bytes, starts, unpack_bits


@layout
class Bitmask(Layout):
    """Right for unstructured survivors between about 6% and 90% of bfloat16 weights: below, `Csr` is smaller.

    `value` holds the survivors in row-major order; bit `j % 8` of `mask[i, j // 8]`, counted from the lowest, says
    that weight (i, j) is one of them; `start[i]` is where row i begins in `value`. This is the sparse-bitmask format of
    compressed-tensors, with one more start, so that a row ends where the next begins.

    Bytes: kept · itemsize + rows · ceil(cols / 8) + 4 · (rows + 1); 8 for 4 from 2^31 survivors on.

    >>> import torch
    >>> w = torch.tensor([[5.0, 0.0, 0.0, 7.0], [0.0, 3.0, 0.0, 0.0]])
    >>> b = Bitmask.pack(w, w != 0)
    >>> b.value.tolist(), b.mask.tolist(), b.start.tolist()      # 9 = 0b1001: columns 0 and 3
    ([5.0, 7.0, 3.0], [[9], [2]], [0, 2, 3])
    >>> b.bytes      # 3 · 4 + 2 · 1 + 4 · 3
    26
    """

    value: Shaped[Tensor, " kept"]
    mask: UInt8[Tensor, "rows bytes"]
    start: Integer[Tensor, " rows1"]
    shape: tuple[int, int]

    @classmethod
    def pack(cls, x: Shaped[Tensor, "rows cols"], keep: Bool[Tensor, "rows cols"]) -> "Bitmask":
        same_shape(x, keep)
        return cls(x.masked_select(keep), pack_bits(keep), starts(keep.sum(1)), (x.shape[0], x.shape[1]))

    def dense(self) -> Shaped[Tensor, "rows cols"]:
        return self.value.new_zeros(self.shape).masked_scatter_(self.keep(), self.value)

    def keep(self) -> Bool[Tensor, "rows cols"]:
        return unpack_bits(self.mask, self.shape[1])

    @classmethod
    def bytes_for(cls, shape: tuple[int, int], kept: int, itemsize: int) -> int:
        """The bytes of `kept` weights of `itemsize` bytes, without packing them."""
        rows, cols = shape
        return kept * itemsize + rows * -(-cols // 8) + start_bytes(rows, kept)
