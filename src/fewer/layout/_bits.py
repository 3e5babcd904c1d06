"""The small arithmetic that layouts share: bits in bytes, starts of rows, columns in few bytes, units that stay whole."""

import math

import torch
from jaxtyping import Bool, Integer, Shaped, UInt8
from torch import Tensor

# Eight bytes that are 0 or 1, read as one integer and times this, have their eight bits side by side in the top byte:
# byte i, at bit 8i, meets the term 2**(56 - 7i) there, and no other pair of terms falls on the same bit.
_GATHER = sum(1 << (56 - 7 * i) for i in range(8))


def pack_bits(bits: Bool[Tensor, "rows n"]) -> UInt8[Tensor, "rows bytes"]:
    """Eight to a byte, the first in the lowest bit; each row begins a byte (numpy's `packbits(bitorder="little")`).

    >>> import torch
    >>> pack_bits(torch.tensor([[True, False, True], [False, True, True]]))
    tensor([[5],
            [6]], dtype=torch.uint8)
    """
    rows, n = bits.shape
    full = torch.nn.functional.pad(bits, (0, -n % 8)).contiguous()  # a copy, so it begins at a whole integer
    if not full.numel():
        return full.new_empty(rows, full.shape[1] // 8, dtype=torch.uint8)
    return (full.view(torch.int64) * _GATHER >> 56).to(torch.uint8)


def unpack_bits(packed: UInt8[Tensor, "rows bytes"], n: int) -> Bool[Tensor, "rows {n}"]:
    """The inverse of `pack_bits`: the first `n` bits of each row."""
    powers = 1 << torch.arange(8, device=packed.device, dtype=torch.uint8)
    return (packed[..., None] & powers).bool().flatten(1)[:, :n]


def starts(count: Integer[Tensor, " rows"]) -> Integer[Tensor, " rows1"]:
    """Where each row begins, and where the last ends: int32, or int64 from 2^31 on."""
    ends = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    return ends.to(torch.int32 if int(ends[-1]) < 2**31 else torch.int64)


def start_bytes(rows: int, count: int) -> int:
    return (rows + 1) * (4 if count < 2**31 else 8)


def columns(keep: Bool[Tensor, "rows cols"]) -> Integer[Tensor, " kept"]:
    """The column of each survivor, in row-major order: uint16, or int32 if there are more than 65536 columns."""
    cols = keep.shape[1]
    column = keep.flatten().nonzero().flatten().remainder_(max(cols, 1))
    if cols <= 2**16:  # int16 wraps, and is read as uint16 again
        return column.to(torch.int16).view(torch.uint16)
    return column.to(torch.int32)


def column_bytes(cols: int) -> int:
    return 2 if cols <= 2**16 else 4


def row_of(start: Integer[Tensor, " rows1"]) -> Integer[Tensor, " kept"]:
    """The row of each survivor."""
    return torch.arange(len(start) - 1, device=start.device).repeat_interleave(start.diff().long())


def flat(start: Integer[Tensor, " rows1"], column: Integer[Tensor, " kept"], cols: int) -> Integer[Tensor, " kept"]:
    """The flat row-major position of each survivor."""
    return row_of(start).mul_(cols).add_(column.long())


def common_unit(keep: Bool[Tensor, "rows cols"], most: int) -> tuple[int, int]:
    """The largest (height, width) up to `most`, a power of two, that stays or goes together everywhere.

    A unit may only end where the pattern changes, so its height divides every row at which it does; so with columns.

    >>> import torch
    >>> common_unit(torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]]).bool(), most=16)
    (2, 2)
    """
    down = (keep[1:] != keep[:-1]).any(1).nonzero().flatten() + 1
    across = (keep[:, 1:] != keep[:, :-1]).any(0).nonzero().flatten() + 1
    rows, cols = keep.shape
    return math.gcd(most, rows, *down.tolist()), math.gcd(most, cols, *across.tolist())


def whole_units(keep: Bool[Tensor, "rows cols"], h: int, w: int) -> Bool[Tensor, "rows_h cols_w"]:
    """Which units are kept; `ValueError` unless each is kept whole or not at all."""
    blocks = into_units(keep, h, w)
    some = blocks.any((2, 3))
    if not torch.equal(some, blocks.all((2, 3))):
        raise ValueError(
            f"a unit of {h}x{w} is kept in part; keep or drop it whole (budget '50% of {h}x{w}'), or store it as Csr"
        )
    return some


def into_units(x: Shaped[Tensor, "rows cols"], h: int, w: int) -> Shaped[Tensor, "rows_h cols_w h w"]:
    """A view of the matrix as units; `ValueError` unless it divides."""
    rows, cols = x.shape
    if h < 1 or w < 1 or rows % h or cols % w:
        raise ValueError(f"{rows}x{cols} does not divide into units of {h}x{w}; give a height and a width that divide")
    return x.unflatten(1, (cols // w, w)).unflatten(0, (rows // h, h)).transpose(1, 2)


def same_shape(x: Tensor, keep: Tensor) -> None:
    if x.shape != keep.shape:
        raise ValueError(f"x is {tuple(x.shape)} and keep is {tuple(keep.shape)}; give one flag for each entry")
