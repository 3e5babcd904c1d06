"""Vector-wise sparsity: tall thin tiles, several rows of one column, that stay or go together."""

import torch
from jaxtyping import Bool, Integer, Shaped
from torch import Tensor

from ._base import Layout, layout
from ._bits import column_bytes, columns, common_unit, into_units, row_of, same_shape, start_bytes, starts, whole_units


@layout
class Tiles(Layout):
    """Right for CPU speed: a 16x1 tile is one input times sixteen neighbouring weights, whatever the pattern.

    Rows come in blocks of `height`. Tile t holds weights (b · height + i, column[t]) as `value[t, i]`; row block b is
    `start[b]:start[b + 1]`, columns ascending. `column` is uint16, or int32 for more than 65536 columns.

    Bytes: kept · itemsize + 2 · kept / height + 4 · (rows / height + 1); 4 for 2 beyond 65536 columns, 8 for 4 from
    2^31 tiles on.

    >>> import torch
    >>> w = torch.tensor([[5.0, 0.0, 7.0], [6.0, 0.0, 8.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    >>> t = Tiles.pack(w, w != 0, height=2)
    >>> t.value.tolist(), t.column.tolist(), t.start.tolist()
    ([[5.0, 6.0], [7.0, 8.0], [1.0, 2.0]], [0, 2, 1], [0, 2, 3])
    >>> t.bytes      # 6 · 4 + 2 · 3 + 4 · 3
    42
    """

    value: Shaped[Tensor, "tiles height"]
    column: Integer[Tensor, " tiles"]
    start: Integer[Tensor, " blocks1"]
    height: int
    shape: tuple[int, int]

    @classmethod
    def pack(
        cls, x: Shaped[Tensor, "rows cols"], keep: Bool[Tensor, "rows cols"], height: int | None = None
    ) -> "Tiles":
        """`height` if not told: the largest of 16, 8, 4, 2, 1 that fits. `ValueError` if a tile is kept in part."""
        same_shape(x, keep)
        height = common_unit(keep, most=16)[0] if height is None else height
        some = whole_units(keep, height, 1)
        value = into_units(x, height, 1)[..., 0][some]
        return cls(value, columns(some), starts(some.sum(1)), height, (x.shape[0], x.shape[1]))

    def dense(self) -> Shaped[Tensor, "rows cols"]:
        out = self.value.new_zeros(self.shape)
        self._tiles(out)[self._where()] = self.value
        return out

    def keep(self) -> Bool[Tensor, "rows cols"]:
        out = self.value.new_zeros(self.shape, dtype=torch.bool)
        self._tiles(out)[self._where()] = True
        return out

    @classmethod
    def bytes_for(cls, shape: tuple[int, int], kept: int, itemsize: int, height: int) -> int:
        """The bytes of `kept` weights of `itemsize` bytes, without packing them."""
        (rows, cols), tiles = shape, kept // height
        return kept * itemsize + tiles * column_bytes(cols) + start_bytes(rows // height, tiles)

    def _tiles(self, x: Shaped[Tensor, "rows cols"]) -> Shaped[Tensor, "blocks cols height"]:
        return into_units(x, self.height, 1)[..., 0]

    def _where(self) -> tuple[Tensor, Tensor]:
        return row_of(self.start), self.column.long()
