"""best_pages with Triton: a program holds its group's scores in registers and finds the k-th largest mean two bits at a time."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels._chain import in_a_row, wait

from . import ref

HELD = 32768  # scores that a program looks at together
LONGEST = 16384  # pages of a head; their counts fit in 20 bits


@triton.jit
def _best(
    score, table, out, n, group, k,
    N: tl.constexpr, HEADS: tl.constexpr, TIMES: tl.constexpr, K: tl.constexpr, CHAIN: tl.constexpr,
):  # fmt: skip
    wait(CHAIN)
    unit, col, each = tl.program_id(0).to(tl.int64), tl.arange(0, N), tl.arange(0, HEADS)
    page = tl.load(table + unit * n + col, mask=col < n, other=-1)
    mean, able = tl.zeros([N], tl.float32), tl.zeros([N], tl.int32)
    for part in range(TIMES):
        head = part * HEADS + each
        inside = (head < group)[:, None] & (col < n)[None, :]
        here = tl.load(score + (unit * group + head)[:, None] * n + col[None, :], mask=inside, other=float("-inf"))
        here = here.to(tl.float32)
        most = tl.max(here, 1)
        most = tl.where(most == float("-inf"), 0.0, most)
        total = tl.sum(tl.exp(here - most[:, None]), 1)
        total = tl.where(total == 0, 1.0, total)
        for i in tl.static_range(HEADS):  # again, a head at a time: a vector that all threads share out among them
            row = part * HEADS + i
            size = n * tl.minimum(tl.maximum(group - row, 0), 1)  # of a head that is not there: none
            again = tl.load(score + (unit * group + row) * n + col, mask=col < size, other=float("-inf"))
            again = again.to(tl.float32)
            p = tl.exp(again - tl.sum(tl.where(each == i, most, 0.0), 0))
            mean += p / tl.sum(tl.where(each == i, total, 0.0), 0)
            able = tl.maximum(able, (again > float("-inf")).to(tl.int32))
    bits = (mean / group).to(tl.int32, bitcast=True)  # a mean is at least 0: its bits rise with it
    key = tl.where(able > 0, bits, -1)
    want = tl.minimum(k, tl.sum(able, 0))
    last = want * 0
    for i in range(15):  # of 30 bits, as a mean is at most 1
        shift = 28 - 2 * i
        reach = (key >= last + (1 << shift)).to(tl.int64)
        reach += (key >= last + (2 << shift)).to(tl.int64) << 20
        reach += (key >= last + (3 << shift)).to(tl.int64) << 40
        counts = tl.sum(reach, 0)  # three in one
        digit = ((counts & 0xFFFFF) >= want).to(tl.int32) + (((counts >> 20) & 0xFFFFF) >= want).to(tl.int32)
        digit += ((counts >> 40) >= want).to(tl.int32)
        last += digit << shift
    above, equal = key > last, key == last  # with none wanted, last is more than any key
    early = tl.cumsum(equal.to(tl.int32), 0) <= want - tl.sum(above.to(tl.int32), 0)
    keep = above | (equal & early)
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(out + unit * k + place, page, mask=keep)
    slot = tl.arange(0, K)
    tl.store(out + unit * k + slot, tl.full([K], -1, tl.int32), mask=(slot >= want) & (slot < k))


def best_pages(
    score: Float[Tensor, "batch heads n"], table: Int32[Tensor, "batch kv_heads n"], k: int
) -> Int32[Tensor, "batch kv_heads reads"]:
    (batch, kv_heads, n), group = table.shape, score.shape[1] // table.shape[1]
    if n > LONGEST or score.dtype == torch.float64:
        return ref.best_pages(score, table, k)
    out = torch.empty(batch, kv_heads, k, dtype=torch.int32, device=score.device)
    if out.numel():
        wide = triton.next_power_of_2(n)
        heads = min(triton.next_power_of_2(group), max(1, HELD // wide))
        _best[(batch * kv_heads,)](
            score.contiguous(), table.contiguous(), out, n, group, k,
            N=wide, HEADS=heads, TIMES=triton.cdiv(group, heads), K=triton.next_power_of_2(k),
            num_warps=min(32, max(2, wide // 256)), **in_a_row(score.device),
        )  # fmt: skip
    return out
