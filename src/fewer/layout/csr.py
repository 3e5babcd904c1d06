"""Compressed sparse rows: the column of each survivor, in two bytes where that is enough."""

import torch
from jaxtyping import Bool, Integer, Shaped
from torch import Tensor

from ._base import Layout, layout
from ._bits import column_bytes, columns, flat, same_shape, start_bytes, starts


@layout
class Csr(Layout):
    """Right for unstructured survivors below about 6% (`Bitmask` is smaller above), and for products with a batch.

    `value` and `column` hold the survivors in row-major order; row i is `start[i]:start[i + 1]`. `column` is uint16, or
    int32 for more than 65536 columns.

    Bytes: kept · (itemsize + 2) + 4 · (rows + 1); 4 for 2 beyond 65536 columns, 8 for 4 from 2^31 survivors on.

    >>> import torch
    >>> w = torch.tensor([[5.0, 0.0, 0.0, 7.0], [0.0, 3.0, 0.0, 0.0]])
    >>> c = Csr.pack(w, w != 0)
    >>> c.value.tolist(), c.column.tolist(), c.start.tolist()
    ([5.0, 7.0, 3.0], [0, 3, 1], [0, 2, 3])
    >>> c.bytes      # 3 · (4 + 2) + 4 · 3
    30
    """

    value: Shaped[Tensor, " kept"]
    column: Integer[Tensor, " kept"]
    start: Integer[Tensor, " rows1"]
    shape: tuple[int, int]

    @classmethod
    def pack(cls, x: Shaped[Tensor, "rows cols"], keep: Bool[Tensor, "rows cols"]) -> "Csr":
        same_shape(x, keep)
        return cls(x.masked_select(keep), columns(keep), starts(keep.sum(1)), (x.shape[0], x.shape[1]))

    def dense(self) -> Shaped[Tensor, "rows cols"]:
        out = self.value.new_zeros(self.shape)
        out.view(-1)[flat(self.start, self.column, self.shape[1])] = self.value
        return out

    def keep(self) -> Bool[Tensor, "rows cols"]:
        out = self.value.new_zeros(self.shape, dtype=torch.bool)
        out.view(-1)[flat(self.start, self.column, self.shape[1])] = True
        return out

    @classmethod
    def bytes_for(cls, shape: tuple[int, int], kept: int, itemsize: int) -> int:
        """The bytes of `kept` weights of `itemsize` bytes, without packing them."""
        rows, cols = shape
        return kept * (itemsize + column_bytes(cols)) + start_bytes(rows, kept)

    def to_torch(self) -> Tensor:
        """A `torch.sparse_csr` tensor with int32 indices: torch's CPU kernels convert int64 ones at each call."""
        index = self.start.dtype
        return torch.sparse_csr_tensor(
            self.start, self.column.to(index), self.value, self.shape, check_invariants=False
        )

    @classmethod
    def from_torch(cls, x: Tensor) -> "Csr":
        """From a `torch.sparse_csr` tensor; explicit zeros stay kept."""
        if x.layout is not torch.sparse_csr or x.ndim != 2:
            raise ValueError(f"not a torch.sparse_csr matrix: {x.layout}, {x.ndim}-D; call x.to_sparse_csr() first")
        small = torch.uint16 if x.shape[1] <= 2**16 else torch.int32
        return cls(x.values(), x.col_indices().to(small), starts(x.crow_indices().diff()), (x.shape[0], x.shape[1]))
