"""Survivors as small integers: one layout inside another."""

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int8, Shaped
from torch import Tensor

from ._base import Layout, layout
from ._bits import same_shape
from ._grid import Grid, Table, pack_codes, unpack_codes
from .bitmask import Bitmask
from .dense import Dense

How = Callable[[Int8[Tensor, "rows cols"], Bool[Tensor, "rows cols"]], Layout]


@layout
class Quantised(Layout):
    """Right for weights on a grid: 2 to 8 bits a survivor, in whatever layout holds the pattern best.

    `codes` is that layout; its `value` are int8 codes, of shape `size`, or, for fewer than 8 bits, those codes plus
    2^(bits - 1) side by side, from the lowest bit on. Weight (i, j) is `scale[i, g] * (code - zero[i, g])` in float32,
    g = j // (cols / groups). `scale` and `zero` are bfloat16, or themselves layouts of their transposes.
    Inside `Dense`, zeros that were kept are dropped, unless all is kept.

    Bytes: those of `codes` with `bits` bits for each value, and 2 for each scale and each zero.

    >>> import torch
    >>> w = torch.tensor([[0.5, 0.0, -3.5, 0.0]])
    >>> q = Quantised.pack(w, w != 0, Grid.around(w, w != 0, bits=4))
    >>> q.codes.name, q.codes.value.tolist(), q.codes.mask.tolist()      # 1 + 8 = 0b1001, then -7 + 8 = 0b0001
    ('bitmask', [25], [[5]])
    >>> q.scale.item(), q.bytes      # 1 for two codes, 1 + 4 · 2 for mask and starts, 2 for the scale
    (0.5, 12)
    """

    codes: Layout
    scale: Table
    zero: Table | None
    bits: int
    size: tuple[int, ...]
    shape: tuple[int, int]

    @classmethod
    def pack(
        cls,
        x: Shaped[Tensor, "rows cols"],
        keep: Bool[Tensor, "rows cols"],
        grid: Grid | None = None,
        how: How = Bitmask.pack,
    ) -> "Quantised":
        """`grid` is needed unless `x` are codes already; `how` packs them. `ValueError` if `x` is not on the grid."""
        same_shape(x, keep)
        if grid is None:
            if x.dtype is not torch.int8:
                raise ValueError(
                    f"{x.dtype} weights lie on no known grid; round them first, and give Quantised the grid"
                )
            grid = Grid(8, x.new_ones(len(x), 1, dtype=torch.bfloat16))
        codes = grid.round(x)
        out = cls.of(codes, keep, grid, how)
        if not torch.equal(out.dense(), torch.where(keep, x, 0).float()):
            raise ValueError(f"the weights do not lie on the grid of {grid.bits} bits; round them to it last")
        return out

    @classmethod
    def of(cls, codes: Int8[Tensor, "rows cols"], keep: Bool[Tensor, "rows cols"], grid: Grid, how: How) -> "Quantised":
        """From codes."""
        inside = how(codes, keep)
        value = inside.tensors()["value"]
        if grid.bits < 8:
            inside = dataclasses.replace(inside, value=pack_codes(value.flatten(), grid.bits))
        shape = (keep.shape[0], keep.shape[1])
        return cls(inside, grid.scale, grid.zero, grid.bits, tuple(value.shape), shape)

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.scale, self.zero)

    @property
    def count(self) -> int:
        return math.prod(self.size)

    def unpacked(self) -> Layout:
        """The layout of the codes, each an int8."""
        if self.bits == 8:
            return self.codes
        value = unpack_codes(self.codes.tensors()["value"], self.count, self.bits).view(self.size)
        return dataclasses.replace(self.codes, value=value)

    def dense(self) -> Float[Tensor, "rows cols"]:
        codes = self.unpacked()
        values = self.grid.values(codes.dense())
        return values if self.zero is None or isinstance(codes, Dense) else torch.where(codes.keep(), values, 0)

    def keep(self) -> Bool[Tensor, "rows cols"]:
        codes = self.unpacked()
        return torch.ones_like(codes.keep()) if self.zero is not None and isinstance(codes, Dense) else codes.keep()
