"""Block-compressed sparse rows: rectangles that stay or go together."""

import torch
from jaxtyping import Bool, Integer, Shaped
from torch import Tensor

from ._base import Layout, layout
from ._bits import column_bytes, columns, common_unit, into_units, row_of, same_shape, start_bytes, starts, whole_units


@layout
class Bsr(Layout):
    """Right for units of 16x16 and more, which matrix units multiply at full speed; the coarsest, so the most costly.

    The matrix is a grid of h x w blocks; the kept ones are `value`, in row-major order; block row b is
    `start[b]:start[b + 1]`, and `column` counts blocks: uint16, or int32 for more than 65536 block columns.

    Bytes: kept · itemsize + 2 · blocks + 4 · (rows / h + 1); 4 for 2 beyond 65536 block columns, 8 for 4 from 2^31
    blocks on.

    >>> import torch
    >>> w = torch.tensor([[0.0, 0.0, 5.0, 6.0], [0.0, 0.0, 7.0, 8.0]])
    >>> b = Bsr.pack(w, w != 0, unit=(2, 2))
    >>> b.value.tolist(), b.column.tolist(), b.start.tolist()
    ([[[5.0, 6.0], [7.0, 8.0]]], [1], [0, 1])
    >>> b.bytes      # 4 · 4 + 2 · 1 + 4 · 2
    26
    """

    value: Shaped[Tensor, "blocks h w"]
    column: Integer[Tensor, " blocks"]
    start: Integer[Tensor, " block_rows1"]
    shape: tuple[int, int]

    @property
    def unit(self) -> tuple[int, int]:
        return self.value.shape[1], self.value.shape[2]

    @classmethod
    def pack(
        cls, x: Shaped[Tensor, "rows cols"], keep: Bool[Tensor, "rows cols"], unit: tuple[int, int] | None = None
    ) -> "Bsr":
        """`unit` (h, w) if not told: the largest powers of two up to 32 that fit. `ValueError` if one is kept in part."""
        same_shape(x, keep)
        h, w = common_unit(keep, most=32) if unit is None else unit
        some = whole_units(keep, h, w)
        return cls(into_units(x, h, w)[some], columns(some), starts(some.sum(1)), (x.shape[0], x.shape[1]))

    def dense(self) -> Shaped[Tensor, "rows cols"]:
        out = self.value.new_zeros(self.shape)
        into_units(out, *self.unit)[self._where()] = self.value
        return out

    def keep(self) -> Bool[Tensor, "rows cols"]:
        out = self.value.new_zeros(self.shape, dtype=torch.bool)
        into_units(out, *self.unit)[self._where()] = True
        return out

    @classmethod
    def bytes_for(cls, shape: tuple[int, int], kept: int, itemsize: int, unit: tuple[int, int]) -> int:
        """The bytes of `kept` weights of `itemsize` bytes, without packing them."""
        (rows, cols), (h, w) = shape, unit
        blocks = kept // (h * w)
        return kept * itemsize + blocks * column_bytes(cols // w) + start_bytes(rows // h, blocks)

    def to_torch(self) -> Tensor:
        """A `torch.sparse_bsr` tensor."""
        column = self.column.to(self.start.dtype)
        return torch.sparse_bsr_tensor(self.start, column, self.value, self.shape, check_invariants=False)

    @classmethod
    def from_torch(cls, x: Tensor) -> "Bsr":
        """From a `torch.sparse_bsr` tensor."""
        if x.layout is not torch.sparse_bsr or x.ndim != 2:
            raise ValueError(
                f"not a torch.sparse_bsr matrix: {x.layout}, {x.ndim}-D; call x.to_sparse_bsr((h, w)) first"
            )
        small = torch.uint16 if x.shape[1] // x.values().shape[2] <= 2**16 else torch.int32
        return cls(x.values(), x.col_indices().to(small), starts(x.crow_indices().diff()), (x.shape[0], x.shape[1]))

    def _where(self) -> tuple[Tensor, Tensor]:
        return row_of(self.start), self.column.long()
