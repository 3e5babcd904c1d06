"""Survivors as small integers: one layout inside another."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int8, Integer, Shaped
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

    `pattern` is that layout, without its values: `value` are those, int8 codes of shape `size`, or, for fewer than 8
    bits, the same in one row, each plus 2^(bits - 1), side by side from the lowest bit on. With g the group of column
    j, weight (i, j) is `scale[i, g] * (code - zero[i, g])` in float32. `scale` and `zero` are bfloat16, or layouts of
    their transposes. Inside `Dense`, zeros that were kept are dropped, unless all is kept.

    Bytes: those of `pattern` with `bits` bits for each value, and 2 for each scale and each zero.

    >>> import torch
    >>> w = torch.tensor([[0.5, 0.0, -3.5, 0.0]])
    >>> q = Quantised.pack(w, w != 0, Grid.around(w, w != 0, bits=4))
    >>> q.pattern.name, q.pattern.mask.tolist(), q.value.tolist()      # 1 + 8 = 0b1001, then -7 + 8 = 0b0001
    ('bitmask', [[5]], [25])
    >>> q.scale.item(), q.bytes      # 1 for two codes, 1 + 4 · 2 for mask and starts, 2 for the scale
    (0.5, 12)
    """

    pattern: Layout
    value: Integer[Tensor, "..."]
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
            grid = Grid(8, torch.ones(len(x), 1, dtype=torch.bfloat16, device=x.device))
        out = cls.of(grid.round(x.float()), keep, grid, how)
        on_grid(out, x, keep, grid.bits)
        return out

    @classmethod
    def of(cls, codes: Int8[Tensor, "rows cols"], keep: Bool[Tensor, "rows cols"], grid: Grid, how: How) -> "Quantised":
        """From codes."""
        packed = how(codes, keep)
        value = packed.tensors()["value"]
        small = value if grid.bits == 8 else pack_codes(value.flatten(), grid.bits)
        pattern = _with(packed, _nothing(value, value.shape))
        shape = (keep.shape[0], keep.shape[1])
        return cls(pattern, small, grid.scale, grid.zero, grid.bits, tuple(value.shape), shape)

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().tensors().items() if name != "pattern_value"}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> "Quantised":
        return super().restore({**tensors, "pattern_value": _nothing(tensors["value"], numbers["size"])}, numbers)

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.scale, self.zero)

    @property
    def count(self) -> int:
        return math.prod(self.size)

    def codes(self) -> Layout:
        """The layout with its values: the codes, each an int8."""
        value = self.value if self.bits == 8 else unpack_codes(self.value, self.count, self.bits).view(self.size)
        return _with(self.pattern, value)

    def dense(self) -> Float[Tensor, "rows cols"]:
        codes = self.codes()
        values = self.grid.values(codes.dense())
        return values if self.zero is None or isinstance(codes, Dense) else torch.where(codes.keep(), values, 0)

    def keep(self) -> Bool[Tensor, "rows cols"]:
        if isinstance(self.pattern, Dense):
            codes = self.codes().dense()
            return codes != 0 if self.zero is None else torch.ones_like(codes, dtype=torch.bool)
        return self.pattern.keep()


def on_grid(stored: Layout, x: Shaped[Tensor, "rows cols"], keep: Bool[Tensor, "rows cols"], bits: int) -> None:
    """`ValueError` unless what is stored is what was given."""
    if not torch.equal(stored.dense(), torch.where(keep, x, 0).float()):
        raise ValueError(
            f"the weights do not lie on the grid of {bits} bits: round last, only a low-rank part may follow"
        )


def _with(pattern: Layout, value: Tensor) -> Layout:
    return dataclasses.replace(pattern, value=value)


def _nothing(like: Tensor, size: Sequence[int]) -> Int8[Tensor, "..."]:
    """A tensor of that size in the memory of one number."""
    return torch.zeros((), dtype=torch.int8, device=like.device).expand(tuple(size))
