"""best_pages with Triton: a program holds a group's scores in registers and closes in on the k-th largest mean, by thirds."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Int32
from torch import Tensor

from . import ref

HELD = 32768  # scores that a program looks at together
LONGEST = 16384  # pages of a head: two counts fit in one number


@triton.jit
def _best(
    score, table, out, end, n, group, k, size,
    N: tl.constexpr, HEADS: tl.constexpr, TIMES: tl.constexpr, K: tl.constexpr, NEWEST: tl.constexpr,
):  # fmt: skip
    unit, col, each = tl.program_id(0).to(tl.int64), tl.arange(0, N), tl.arange(0, HEADS)
    most_of_them, rest = n, k
    if NEWEST:
        most_of_them = ((tl.load(end + unit) + size - 1) // size).to(tl.int32) - 1
        rest = k - 1
    page = tl.load(table + unit * n + col, mask=col < n, other=-1)
    mean, able = tl.zeros([N], tl.float32), tl.zeros([N], tl.int32)
    for part in range(TIMES):
        head = part * HEADS + each
        inside = (head < group)[:, None] & (col < most_of_them)[None, :]
        here = tl.load(score + (unit * group + head)[:, None] * n + col[None, :], mask=inside, other=float("-inf"))
        here = here.to(tl.float32)
        most = tl.max(here, 1)
        p = tl.exp(here - tl.where(most == float("-inf"), 0.0, most)[:, None])
        total = tl.sum(p, 1)
        mean += tl.sum(p / tl.where(total == 0, 1.0, total)[:, None], 0)
        able = tl.maximum(able, tl.max((here > float("-inf")).to(tl.int32), 0))
    bits = (mean / group).to(tl.int32, bitcast=True)  # a mean is at least 0: its bits rise with it
    key = tl.where(able > 0, bits, -1)
    want = tl.minimum(rest, tl.sum(able, 0))
    last, third = want * 0, want * 0 + 387420489  # 3^18: a mean is at most 1, its bits are less than 3^19
    for _ in range(19):
        reach = (key >= last + third).to(tl.int32) + ((key >= last + 2 * third).to(tl.int32) << 16)
        counts = tl.sum(reach, 0)  # two in one
        last += third * (((counts & 0xFFFF) >= want).to(tl.int32) + ((counts >> 16) >= want).to(tl.int32))
        third = third // 3
    above, equal = (key > last).to(tl.int32), (key == last).to(tl.int32)  # with none wanted, last is more than any key
    both = tl.cumsum(above + (equal << 16), 0)
    better, before = both & 0xFFFF, (both >> 16) - equal
    need = want - tl.sum(above, 0)
    place = better - above + tl.minimum(before, need)
    tl.store(out + unit * k + place, page, mask=(above > 0) | ((equal > 0) & (before < need)))
    slot = tl.arange(0, K)
    left = tl.full([K], -1, tl.int32)
    if NEWEST:
        last = tl.load(table + unit * n + tl.maximum(most_of_them, 0))
        left = tl.where((slot == rest) & (most_of_them >= 0), last, left)
    tl.store(out + unit * k + slot, left, mask=(slot >= want) & (slot < k))


def best_pages(
    score: Float[Tensor, "batch heads n"],
    table: Int32[Tensor, "batch kv_heads n"],
    k: int,
    end: Int[Tensor, "batch kv_heads"] | None = None,
    size: int = 1,
) -> Int32[Tensor, "batch kv_heads reads"]:
    (batch, kv_heads, n), group = table.shape, score.shape[1] // table.shape[1]
    if n > LONGEST or score.dtype == torch.float64:
        return ref.best_pages(score, table, k, end, size)
    out = torch.empty(batch, kv_heads, k, dtype=torch.int32, device=score.device)
    if out.numel():
        wide = max(16, triton.next_power_of_2(n))
        heads = min(triton.next_power_of_2(group), max(1, HELD // wide))
        _best[(batch * kv_heads,)](
            score.contiguous(), table.contiguous(), out, out if end is None else end, n, group, k, size, NEWEST=end is not None,
            N=wide, HEADS=heads, TIMES=triton.cdiv(group, heads), K=triton.next_power_of_2(k),
            num_warps=min(16, max(4, wide // 512)),
        )  # fmt: skip
    return out
