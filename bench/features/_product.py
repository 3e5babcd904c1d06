"""A product that finds the highest key of each group on its way to memory: what `encode` might be, and is not, as cuBLAS is faster."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.kernels.encode._gpu import ranked


@triton.jit
def product(
    x, w, b, pre, top, rows, size, dim, groups,
    BY_SIZE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """x W^T + b, and on its way to memory the highest key of each group."""
    program, tall, wide = tl.program_id(0), tl.cdiv(rows, M), tl.cdiv(size, N)
    band = program // (BAND * wide)
    height = tl.minimum(tall - band * BAND, BAND)
    row = ((band * BAND + program % (BAND * wide) % height) * M + tl.arange(0, M)).to(tl.int64)
    col = (program % (BAND * wide) // height * N + tl.arange(0, N)).to(tl.int64)
    step = tl.arange(0, K)
    left = x + (row % rows)[:, None] * dim + step[None, :]
    right = w + (col % size)[None, :] * dim + step[:, None]
    total = tl.zeros([M, N], tl.float32)
    for at in range(0, dim, K):
        a = tl.load(left + at, mask=(at + step < dim)[None, :], other=0.0)
        c = tl.load(right + at, mask=(at + step < dim)[:, None], other=0.0)
        total = tl.dot(a, c, total, input_precision="ieee")
    total += tl.load(b + col, mask=col < size, other=0.0).to(tl.float32)[None, :]
    out = total.to(pre.dtype.element_ty)
    inside = (row < rows)[:, None] & (col < size)[None, :]
    tl.store(pre + row[:, None] * size + col[None, :], out, mask=inside)
    low: tl.constexpr = (1 << (WIDTH - 1)) - 1
    bits = out.to(top.dtype.element_ty, bitcast=True)
    key = tl.where((col < size)[None, :], ranked(bits, BY_SIZE, WIDTH).to(tl.int32), -low - 1)
    high = tl.max(tl.reshape(key, [M, N // GROUP, GROUP]), 2)
    group = tl.program_id(0) % (BAND * wide) // height * (N // GROUP) + tl.arange(0, N // GROUP)
    where = row[:, None] * groups + group[None, :]
    tl.store(top + where, high.to(top.dtype.element_ty), mask=(row < rows)[:, None] & (group < groups)[None, :])


def fused(x: Tensor, w: Tensor, b: Tensor, group: int, by_size: bool) -> tuple[Tensor, Tensor]:
    """The product, and the highest key of each group of it."""
    rows, size, groups = len(x), len(w), triton.cdiv(len(w), group)
    pre = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    top = torch.empty(rows, groups, dtype=torch.int16, device=x.device)
    grid = (triton.cdiv(rows, 128) * triton.cdiv(size, 256),)
    product[grid](
        x.contiguous(), w.contiguous(), b, pre, top, rows, size, x.shape[1], groups,
        BY_SIZE=by_size, WIDTH=16, GROUP=group, M=128, N=256, K=64, BAND=8, num_warps=8, num_stages=3,
    )  # fmt: skip
    return pre, top
