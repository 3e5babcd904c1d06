"""collect with Triton: uses are sorted by atom, stably, so that a program owns its atom and sums in a fixed order."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewer.layout import Codes

WIDE, MANY = 256, 8  # columns of a tile, and uses at a time


def by_atom(codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Where each atom's uses begin, of which row they are, and with what value; uses of value 0 come last, and belong to none."""
    k = codes.index.shape[1]
    value = codes.value.reshape(-1)
    atom = torch.where(value != 0, codes.index.reshape(-1), codes.size).int()
    atom, order = atom.sort(stable=True)
    each = torch.arange(codes.size + 1, dtype=torch.int32, device=atom.device)
    start = torch.searchsorted(atom, each, out_int32=True)
    return start, order // max(1, k), value[order]


@triton.jit
def gathered(start, whose, amount, y, atom, cols, inside, dim, MANY: tl.constexpr, TILE: tl.constexpr):
    """The sum of one atom's uses, at some columns."""
    slot = tl.arange(0, MANY)
    total = tl.zeros([MANY, TILE], tl.float32)
    end = tl.load(start + atom + 1)
    for first in range(tl.load(start + atom), end, MANY):
        at = first + slot
        real = at < end
        row = tl.load(whose + at, mask=real, other=0)
        weight = tl.load(amount + at, mask=real, other=0.0).to(tl.float32)
        theirs = tl.load(y + row[:, None] * dim + cols[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        total += weight[:, None] * theirs.to(tl.float32)
    return tl.sum(total, 0)


@triton.jit
def _collect(start, whose, amount, y, out, dim, MANY: tl.constexpr, TILE: tl.constexpr):
    atom, cols = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = cols < dim
    total = gathered(start, whose, amount, y, atom, cols, inside, dim, MANY, TILE)
    tl.store(out + atom * dim + cols, total.to(out.dtype.element_ty), mask=inside)


def collect(codes: Codes, y: Float[Tensor, "rows dim"]) -> Float[Tensor, "size dim"]:
    dim = y.shape[1]
    out = torch.empty(codes.size, dim, dtype=y.dtype, device=y.device)
    if out.numel():
        tile = min(WIDE, triton.next_power_of_2(dim))
        grid = (codes.size, triton.cdiv(dim, tile))
        _collect[grid](*by_atom(codes), y.contiguous(), out, dim, MANY=MANY, TILE=tile)
    return out
