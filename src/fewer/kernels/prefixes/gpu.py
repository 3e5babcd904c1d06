"""prefixes with Triton: a program owns one row and one tile of columns, goes through the atoms once there and once back.

On the way back an atom is added again to the error that it was taken from, so no prefix is kept.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewer.layout import Codes

WIDE = 256  # columns of a tile, which is a warp's


@triton.jit
def _prefixes(index, value, atoms, y, weight, missed, slope, rest, dim, k, tiles, TILE: tl.constexpr):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cols = tile * TILE + tl.arange(0, TILE)
    inside, part = cols < dim, (row * tiles + tile) * k
    error = tl.load(y + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
    for j in range(k):
        here, atom = tl.load(value + row * k + j).to(tl.float32), tl.load(index + row * k + j)
        error -= here * tl.load(atoms + atom * dim + cols, mask=inside, other=0.0).to(tl.float32)
        tl.store(missed + part + j, tl.sum(error * error, 0))
    total = tl.zeros([TILE], tl.float32)
    for i in range(k):
        j = k - 1 - i
        here, atom = tl.load(value + row * k + j).to(tl.float32), tl.load(index + row * k + j)
        mine = tl.load(atoms + atom * dim + cols, mask=inside, other=0.0).to(tl.float32)
        total += tl.load(weight + j).to(tl.float32) * error
        tl.store(rest + (row * k + j) * dim + cols, total.to(rest.dtype.element_ty), mask=inside)
        tl.store(slope + part + j, -2 * tl.sum(total * mine, 0))
        error += here * mine


def prefixes(
    codes: Codes, atoms: Float[Tensor, "size dim"], y: Float[Tensor, "rows dim"], weight: Float[Tensor, " k"]
) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows k"], Float[Tensor, "rows k dim"]]:
    (rows, k), dim = codes.index.shape, y.shape[1]
    tile = min(WIDE, max(16, triton.next_power_of_2(dim)))
    tiles = triton.cdiv(dim, tile)
    missed, slope = (torch.empty(rows, tiles, k, dtype=torch.float32, device=y.device) for _ in range(2))
    rest = torch.empty(rows, k, dim, dtype=y.dtype, device=y.device)
    if rest.numel():
        given = (t.contiguous() for t in (codes.index, codes.value, atoms, y, weight))
        _prefixes[(rows, tiles)](*given, missed, slope, rest, dim, k, tiles, TILE=tile, num_warps=1)
    return missed.sum(1).to(y.dtype), slope.sum(1).to(y.dtype), rest
