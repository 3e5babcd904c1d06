"""best_pages with Triton: many programs, each of which counts, for a few pages, how many are better: that is where they stand."""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from . import ref

HELD = 32768  # scores that a program looks at together
LONGEST = 16384  # pages of a head


@triton.jit
def _best(
    score, table, out, n, group, k,
    N: tl.constexpr, HEADS: tl.constexpr, TIMES: tl.constexpr, MINE: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """MINE pages of one key-value head; what they are ranked by is found anew by every program, as nothing waits for nothing."""
    unit, col, each = tl.program_id(1).to(tl.int64), tl.arange(0, N), tl.arange(0, HEADS)
    mean, able = tl.zeros([N], tl.float32), tl.zeros([N], tl.int32)
    for part in range(TIMES):
        head = part * HEADS + each
        inside = (head < group)[:, None] & (col < n)[None, :]
        here = tl.load(score + (unit * group + head)[:, None] * n + col[None, :], mask=inside, other=float("-inf"))
        here = here.to(tl.float32)
        most = tl.max(here, 1)
        p = tl.exp(here - tl.where(most == float("-inf"), 0.0, most)[:, None])
        total = tl.sum(p, 1)
        mean += tl.sum(p / tl.where(total == 0, 1.0, total)[:, None], 0)
        able = tl.maximum(able, tl.max((here > float("-inf")).to(tl.int32), 0))
    bits = (mean / group).to(tl.int32, bitcast=True)  # a mean is at least 0: its bits rise with it
    key = tl.where(able > 0, bits, -1)
    mine = tl.program_id(0) * MINE + tl.arange(0, MINE)
    same = mine[:, None] == col[None, :]
    own = tl.sum(tl.where(same, key[None, :], 0), 1)
    earlier = (col[None, :] < mine[:, None]).to(tl.int32)  # of equals the first is better
    rank = tl.sum((key[None, :] + earlier > own[:, None]).to(tl.int32), 1)
    page = tl.load(table + unit * n + mine, mask=mine < n, other=-1)
    tl.store(out + unit * k + rank, page, mask=(own >= 0) & (mine < n) & (rank < k))
    slot, found = tl.arange(0, K), tl.sum(able, 0)
    empty = (slot >= found) & (slot < k) & (slot + tl.program_id(0) * K < K)  # the first program fills up
    tl.store(out + unit * k + slot, tl.full([K], -1, tl.int32), mask=empty)


def best_pages(
    score: Float[Tensor, "batch heads n"], table: Int32[Tensor, "batch kv_heads n"], k: int
) -> Int32[Tensor, "batch kv_heads reads"]:
    (batch, kv_heads, n), group = table.shape, score.shape[1] // table.shape[1]
    if n > LONGEST or score.dtype == torch.float64:
        return ref.best_pages(score, table, k)
    out = torch.empty(batch, kv_heads, k, dtype=torch.int32, device=score.device)
    if out.numel():
        wide = max(16, triton.next_power_of_2(n))
        heads = min(triton.next_power_of_2(group), max(1, HELD // wide))
        mine = 32 if n > 512 else 16
        _best[(triton.cdiv(n, mine), batch * kv_heads)](
            score.contiguous(), table.contiguous(), out, n, group, k,
            N=wide, HEADS=heads, TIMES=triton.cdiv(group, heads), MINE=mine, K=triton.next_power_of_2(k),
            num_warps=8 if n > 2048 else 4,
        )  # fmt: skip
    return out
