"""page_bounds with Triton: the positive part of a group's queries times the upper corners, plus the negative part times the lower."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from . import ref

WIDEST, TALLEST = 256, 128  # numbers of a box, rows of a product


@triton.jit
def _bounds(
    q, low, high, table, out, kv_heads, group, queries, n, dim, scale,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, PAGES: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Some pages of one key-value head: row r of the product is query r % QUERIES of head r // QUERIES."""
    col, unit = tl.program_id(0) * PAGES + tl.arange(0, PAGES), tl.program_id(1).to(tl.int64)
    row = tl.arange(0, GROUP * QUERIES)
    head, query = row // QUERIES, row % QUERIES
    real = (head < group) & (query < queries)
    page = tl.load(table + unit * n + col, mask=col < n, other=-1).to(tl.int64)
    place = ((unit * group + head) * queries + query)[:, None] * dim
    bound = tl.zeros([GROUP * QUERIES, PAGES], tl.float32)
    for part in range(PARTS):  # short sums round less
        lane = part * D + tl.arange(0, D)
        inside, here = (page >= 0)[:, None] & (lane < dim)[None, :], page[:, None] * dim + lane[None, :]
        most, least = tl.load(high + here, mask=inside, other=0.0), tl.load(low + here, mask=inside, other=0.0)
        mine = tl.load(q + place + lane[None, :], mask=real[:, None] & (lane < dim)[None, :], other=0.0)
        if WIDE:
            mine, most, least = mine.to(tl.float32), most.to(tl.float32), least.to(tl.float32)
        zero = tl.zeros_like(mine)
        above = tl.dot(tl.where(mine > 0, mine, zero), tl.trans(most), input_precision="ieee")
        bound += tl.dot(tl.where(mine < 0, mine, zero), tl.trans(least), above, input_precision="ieee")
    bound *= scale
    bound = tl.where(real[:, None] & (page >= 0)[None, :], bound, float("-inf"))
    best = tl.max(tl.reshape(bound, [GROUP, QUERIES, PAGES]), 1)
    each = tl.arange(0, GROUP)
    mask = (each < group)[:, None] & (col < n)[None, :]
    tl.store(out + (unit * group + each)[:, None] * n + col[None, :], best, mask=mask)


def page_bounds(
    q: Float[Tensor, "batch heads queries dim"],
    low: Float[Tensor, "pages dim"],
    high: Float[Tensor, "pages dim"],
    table: Int32[Tensor, "batch kv_heads n"],
    scale: float,
) -> Float[Tensor, "batch heads n"]:
    (batch, heads, queries, dim), (kv_heads, n) = q.shape, table.shape[1:]
    tall, deep = triton.next_power_of_2(heads // kv_heads), triton.next_power_of_2(queries)
    deep = max(deep, 16 // tall)
    if q.dtype == torch.float64 or dim > WIDEST or tall * deep > TALLEST:
        return ref.page_bounds(q, low, high, table, scale)
    out = torch.empty(batch, heads, n, dtype=torch.float32, device=q.device)
    if out.numel():
        wide = not q.dtype == low.dtype == high.dtype or q.element_size() > 2
        pages, d = 32 if wide or n <= 4096 else 64, max(16, triton.next_power_of_2(dim))
        part = min(d, 32) if wide else d
        _bounds[(triton.cdiv(n, pages), batch * kv_heads)](
            q.contiguous(), low.contiguous(), high.contiguous(), table.contiguous(), out,
            kv_heads, heads // kv_heads, queries, n, dim, scale,
            GROUP=tall, QUERIES=deep, PAGES=pages, D=part, PARTS=d // part, WIDE=wide, num_warps=4,
        )  # fmt: skip
    return out
