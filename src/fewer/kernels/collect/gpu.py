"""collect with Triton: uses are sorted by atom, stably, so that a program owns its atom and sums in a fixed order."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewer.kernels._order import shared
from fewer.layout import Codes

WIDE, MANY = 512, 2  # columns of a tile, a warp each 256; and uses on their way at a time


def by_atom(codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Where each atom's uses begin, of which row they are, and with what value; uses of value 0 come last, and belong to none."""
    value, known = codes.value.reshape(-1), shared(codes.index)
    if known and known[-1]:
        start, whose, order = known[-1]
        return start, whose, value[order]
    atom = codes.index.reshape(-1)
    atom, order = (atom if known else torch.where(value != 0, atom, codes.size)).int().sort(stable=True)
    each = torch.arange(codes.size + 1, dtype=torch.int32, device=atom.device)
    start = torch.searchsorted(atom, each, out_int32=True)
    whose = order // max(1, codes.index.shape[1])
    if known:
        known[-1] = start, whose, order
    return start, whose, value[order]


@triton.jit
def gathered(start, whose, amount, y, atom, cols, dim, MANY: tl.constexpr, TILE: tl.constexpr):
    """The sum of one atom's uses, at some columns."""
    total = tl.zeros([TILE], tl.float32)
    end = tl.load(start + atom + 1)
    for first in range(tl.load(start + atom), end, MANY):
        for i in tl.static_range(MANY):
            at = first + i
            row = tl.load(whose + at, mask=at < end, other=0)
            weight = tl.load(amount + at, mask=at < end, other=0.0).to(tl.float32)
            theirs = tl.load(y + row * dim + cols, mask=cols < tl.where(at < end, dim, 0), other=0.0)
            total += weight * theirs.to(tl.float32)
    return total


@triton.jit
def _collect(start, whose, amount, y, out, dim, MANY: tl.constexpr, TILE: tl.constexpr):
    atom, cols = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = gathered(start, whose, amount, y, atom, cols, dim, MANY, TILE)
    tl.store(out + atom * dim + cols, total.to(out.dtype.element_ty), mask=cols < dim)


@triton.jit
def _numbers(start, whose, amount, y, out, LANES: tl.constexpr):
    """Rows of one number: the lanes go along the uses."""
    atom, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    total = tl.zeros([LANES], tl.float32)
    end = tl.load(start + atom + 1)
    for first in range(tl.load(start + atom), end, LANES):
        at = first + lane
        row = tl.load(whose + at, mask=at < end, other=0)
        weight = tl.load(amount + at, mask=at < end, other=0.0).to(tl.float32)
        total += weight * tl.load(y + row, mask=at < end, other=0.0).to(tl.float32)
    tl.store(out + atom, tl.sum(total, 0).to(out.dtype.element_ty))


def collect(codes: Codes, y: Float[Tensor, "rows dim"]) -> Float[Tensor, "size dim"]:
    dim = y.shape[1]
    out = torch.empty(codes.size, dim, dtype=y.dtype, device=y.device)
    if dim == 1 and codes.size:
        _numbers[(codes.size,)](*by_atom(codes), y.contiguous(), out, LANES=64, num_warps=1)
    elif out.numel():
        tile = min(WIDE, max(16, triton.next_power_of_2(dim)))
        grid = (codes.size, triton.cdiv(dim, tile))
        warps = max(1, tile // 256)
        _collect[grid](*by_atom(codes), y.contiguous(), out, dim, MANY=MANY, TILE=tile, num_warps=warps)
    return out
