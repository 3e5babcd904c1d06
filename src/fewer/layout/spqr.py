"""Few bits for most weights, sixteen for the few that matter most."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ._base import Layout, layout
from ._grid import Grid
from .bitmask import Bitmask
from .csr import Csr
from .quantised import How, Quantised, on_grid


@layout
class Spqr(Layout):
    """Right for weights on a coarse grid with outliers: what a grid of 3 bits would lose most by is kept as it is.

    `body` has a code for every survivor, outliers too; `outlier` holds what stands in the place of those, in bfloat16.

    Bytes: those of both. With groups of b1 columns whose scales and zeros have bs and bz bits and share, b2 rows of
    them, four numbers of 16 bits, a weight of b bits takes b + (bs + bz) / b1 + 64 / (b1 · b2) bits, an outlier 32
    more, a row 32 more: the paper's formula.

    >>> import torch
    >>> w = torch.tensor([[1.0, -2.0, 100.0, 3.0]])
    >>> grid = dataclasses.replace(Grid.around(w, w < 100, bits=3), apart=w == 100)
    >>> s = Spqr.pack(w, w != 0, grid)
    >>> s.dense(), s.outlier.column.tolist()
    (tensor([[  1.,  -2., 100.,   3.]]), [2])
    >>> s.body.bytes, s.outlier.bytes      # 2 for 4 · 3 bits, 1 + 8 for the mask and starts, 2 for the scale; 4 + 8
    (13, 12)
    """

    body: Quantised
    outlier: Csr

    @property
    def shape(self) -> tuple[int, ...]:
        return self.body.shape

    @classmethod
    def pack(
        cls,
        x: Shaped[Tensor, "rows cols"],
        keep: Bool[Tensor, "rows cols"],
        grid: Grid | None = None,
        how: How = Bitmask.pack,
    ) -> "Spqr":
        """As `Quantised`, and `grid.apart` says where the outliers are; they must be bfloat16 numbers."""
        if grid is None or grid.apart is None:
            body = Quantised.pack(x, keep, grid, how)
            return cls(body, Csr.pack(x.to(torch.bfloat16), torch.zeros_like(keep)))
        apart = grid.apart & keep
        body = Quantised.of(grid.round(x), keep, dataclasses.replace(grid, apart=None), how)
        out = cls(body, Csr.pack(x.to(torch.bfloat16), apart))
        on_grid(out, x, keep, grid.bits)
        return out

    @property
    def count(self) -> int:
        return self.body.count

    def dense(self) -> Float[Tensor, "rows cols"]:
        return torch.where(self.outlier.keep(), self.outlier.dense().float(), self.body.dense())

    def keep(self) -> Bool[Tensor, "rows cols"]:
        return self.body.keep() | self.outlier.keep()
