"""residual with Triton: a program owns one row and a tile of columns; the second look at the atoms finds them in the L2 cache."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewer.layout import Codes

WIDE, MANY = 256, 8  # columns of a tile, a warp each 256; and atoms on their way at a time


@triton.jit
def _residual(
    index, value, atoms, y, bias, error, along, missed, dim, k, tiles, MANY: tl.constexpr, TILE: tl.constexpr
):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cols = tile * TILE + tl.arange(0, TILE)
    inside, part = cols < dim, row * tiles + tile
    left = tl.load(y + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    left -= tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)
    for first in range(0, k, MANY):
        for i in tl.static_range(MANY):
            j = first + i
            here = tl.load(value + row * k + j, mask=j < k, other=0.0).to(tl.float32)
            atom = tl.load(index + row * k + j, mask=j < k, other=0)
            theirs = tl.load(atoms + atom * dim + cols, mask=cols < tl.where(here != 0, dim, 0), other=0.0)
            left -= here * theirs.to(tl.float32)
    tl.store(error + row * dim + cols, left.to(error.dtype.element_ty), mask=inside)
    tl.store(missed + part, tl.sum(left * left, 0))
    for first in range(0, k, MANY):
        for i in tl.static_range(MANY):
            j = first + i
            atom = tl.load(index + row * k + j, mask=j < k, other=0)
            theirs = tl.load(atoms + atom * dim + cols, mask=cols < tl.where(j < k, dim, 0), other=0.0)
            tl.store(along + part * k + j, tl.sum(left * theirs.to(tl.float32), 0), mask=j < k)


def residual(
    codes: Codes, atoms: Float[Tensor, "size dim"], y: Float[Tensor, "rows dim"], bias: Float[Tensor, " dim"]
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows k"], Float[Tensor, " rows"]]:
    (rows, k), dim = codes.index.shape, y.shape[1]
    tile = min(WIDE, max(16, triton.next_power_of_2(dim)))
    tiles, kind = triton.cdiv(dim, tile), torch.result_type(y, atoms)
    error = torch.empty(rows, dim, dtype=atoms.dtype, device=y.device)
    along = torch.empty(rows, tiles, k, dtype=torch.float32, device=y.device)
    missed = torch.empty(rows, tiles, dtype=torch.float32, device=y.device)
    if error.numel():
        given = (t.contiguous() for t in (codes.index, codes.value, atoms, y, bias))
        _residual[(rows, tiles)](
            *given, error, along, missed, dim, k, tiles, MANY=MANY, TILE=tile, num_warps=max(1, tile // 256)
        )
    return error, along.sum(1).to(kind), missed.sum(1).to(kind)
