"""correlate with Triton: a program owns some atoms of one row, and goes along their columns."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

WIDE, MANY = 256, 8  # columns at a time, and atoms of a program


@triton.jit
def _correlate(y, atoms, index, out, dim, k, MANY: tl.constexpr, TILE: tl.constexpr):
    row, slot = tl.program_id(0).to(tl.int64), tl.program_id(1) * MANY + tl.arange(0, MANY)
    real = slot < k
    atom = tl.load(index + row * k + slot, mask=real, other=0)
    total = tl.zeros([MANY, TILE], tl.float32)
    for first in range(0, dim, TILE):
        cols = first + tl.arange(0, TILE)
        inside = cols < dim
        here = tl.load(y + row * dim + cols, mask=inside, other=0.0).to(tl.float32)
        theirs = tl.load(atoms + atom[:, None] * dim + cols[None, :], mask=real[:, None] & inside[None, :], other=0.0)
        total += here[None, :] * theirs.to(tl.float32)
    tl.store(out + row * k + slot, tl.sum(total, 1).to(out.dtype.element_ty), mask=real)


def correlate(
    y: Float[Tensor, "rows dim"], atoms: Float[Tensor, "size dim"], index: Int64[Tensor, "rows k"]
) -> Float[Tensor, "rows k"]:
    (rows, k), dim = index.shape, atoms.shape[1]
    out = torch.empty(rows, k, dtype=torch.result_type(y, atoms), device=atoms.device)
    if out.numel():
        tile = min(WIDE, triton.next_power_of_2(dim))
        given = y.contiguous(), atoms.contiguous(), index.contiguous()
        _correlate[(rows, triton.cdiv(k, MANY))](*given, out, dim, k, MANY=MANY, TILE=tile)
    return out
