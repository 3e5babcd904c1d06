"""index_top_k with Triton: scores are made once and only those that may be among the best are held.

A program goes through the keys in order and holds, for each of its queries, the best so far and whoever beats the worst of them. When its room
is full, that is cut back to the best, and the bar rises. So of n keys in any usual order about top (1 + log(n / top)) are ever held, and
what is held of a query needs memory only while its program runs. Nobody shares anything: the result is the same at every run.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels.attend_pages.gpu import processors
from fewer.kernels.top_k.gpu import _key as rising

from . import ref

WIDEST = 256  # an index head's numbers that a tile can hold
LONGEST = 16384  # keys that one query may choose
LOWEST = tl.constexpr(-(2**31))


@triton.jit
def _scores(q, k, weight, batch, row, col, heads, queries, keys, dim, D: tl.constexpr, EXACT: tl.constexpr):
    """[rows, cols] of the sum over heads."""
    lane, real, there = tl.arange(0, D), row < queries, col < keys
    here = k + (batch * keys + col).to(tl.int64)[:, None] * dim + lane[None, :]
    mine = tl.load(here, mask=there[:, None] & (lane < dim)[None, :], other=0.0)
    score = tl.zeros([row.shape[0], col.shape[0]], tl.float32)
    for head in range(heads):
        place = (batch * heads + head).to(tl.int64) * queries + row
        x = tl.load(q + place[:, None] * dim + lane[None, :], mask=real[:, None] & (lane < dim)[None, :], other=0.0)
        w = tl.load(weight + place, mask=real, other=0.0).to(tl.float32)
        score += tl.maximum(tl.dot(x, tl.trans(mine), input_precision=EXACT), 0.0) * w[:, None]
    return score


@triton.jit
def _cut_back(held, cols, count, top, HELD: tl.constexpr):
    """Of `count` held, the `top` best stay, in order; the lowest of them is the bar."""
    each = tl.arange(0, HELD)
    key, col = tl.load(held + each, mask=each < count, other=LOWEST), tl.load(cols + each, mask=each < count, other=-1)
    bar = count * 0 + LOWEST
    bit = bar
    for _ in range(32):
        higher = bar ^ bit
        bar = tl.where(tl.sum((key >= higher).to(tl.int32), 0) >= top, higher, bar)
        bit = (bit >> 1) & 0x7FFFFFFF  # without the sign that >> copies
    above, equal = (key > bar).to(tl.int32), ((key == bar) & (each < count)).to(tl.int32)
    need = top - tl.sum(above, 0)
    stays = (above > 0) | ((equal > 0) & (tl.cumsum(equal, 0) <= need))
    place = tl.cumsum(stays.to(tl.int32), 0) - 1
    tl.debug_barrier()
    tl.store(held + place, key, mask=stays)
    tl.store(cols + place, col, mask=stays)
    tl.debug_barrier()
    return bar


@triton.jit
def _all(held, cols, count, bar, most, top, room, ROWS: tl.constexpr, HELD: tl.constexpr):
    """Cut back every query that holds more than `most`."""
    each = tl.arange(0, ROWS)
    tl.debug_barrier()
    for r in range(ROWS):
        n = tl.sum(tl.where(each == r, count, 0), 0)
        if n > most:
            raised = _cut_back(held + r * room, cols + r * room, n, top, HELD)
            bar, count = tl.where(each == r, raised, bar), tl.where(each == r, top, count)
    return count, bar


@triton.jit
def _choose(
    q, k, weight, at, now, out, held, cols, batches, tiles, heads, queries, keys, dim, top, room,
    ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, HELD: tl.constexpr, TOP: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Some tiles of queries, the last ones first: they read the most."""
    mine, each, slot = tl.program_id(0).to(tl.int64) * ROWS * room, tl.arange(0, ROWS), tl.arange(0, TOP)
    held, cols = held + mine, cols + mine
    for number in range(tl.program_id(0), batches * tiles, tl.num_programs(0)):
        batch, row = number % batches, (tiles - 1 - number // batches) * ROWS + each
        last = tl.load(now + batch * queries + row, mask=row < queries, other=-1)
        latest, count, bar = tl.max(last, 0), tl.zeros([ROWS], tl.int32), tl.full([ROWS], LOWEST, tl.int32)
        for start in range(0, keys, COLS):
            col = start + tl.arange(0, COLS)
            place = tl.load(at + batch * keys + col, mask=col < keys, other=-1)
            if tl.min(tl.where(place < 0, 2147483647, place), 0) <= latest:
                score = _scores(q, k, weight, batch, row, col, heads, queries, keys, dim, D, EXACT)
                key = rising(score.to(tl.int32, bitcast=True), 32)
                may = (place >= 0)[None, :] & (place[None, :] <= last[:, None]) & (key > bar[:, None])
                to = (each * room + count)[:, None] + tl.cumsum(may.to(tl.int32), 1) - 1
                tl.store(held + to, key, mask=may)
                tl.store(cols + to, tl.broadcast_to(col[None, :], [ROWS, COLS]), mask=may)
                count += tl.sum(may.to(tl.int32), 1)
                if tl.max(count, 0) > room - COLS:
                    count, bar = _all(held, cols, count, bar, top + (room - COLS - top) // 2, top, room, ROWS, HELD)
        count, bar = _all(held, cols, count, bar, top, top, room, ROWS, HELD)
        for r in range(ROWS):
            n = tl.sum(tl.where(each == r, count, 0), 0)
            found = tl.load(cols + r * room + slot, mask=slot < n, other=-1)
            query = (tiles - 1 - number // batches) * ROWS + r
            to = out + (batch * queries + query).to(tl.int64) * top + slot
            tl.store(to, found, mask=slot < tl.where(query < queries, top, 0))
        tl.debug_barrier()


@dataclass(frozen=True)
class Cut:
    """How the work is cut: queries and keys of a tile, warps, loads under way, programs a processor, registers of a thread at most.

    Scores need few registers; cutting back needs many, seldom: what it spills is cheaper than a processor with one program.
    """

    rows: int
    cols: int
    warps: int
    stages: int
    programs: int = 1
    registers: int | None = None


def cut_of(size: int, dim: int, queries: int) -> Cut:
    cut = Cut(64, 128, 8, 3, 2, 128) if size == 2 and dim <= 128 else Cut(32, 64, 4, 2, 2)
    return replace(cut, rows=min(cut.rows, max(16, triton.next_power_of_2(queries))))


def index_top_k(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch keys dim"],
    weight: Float[Tensor, "batch heads queries"],
    at: Int32[Tensor, "batch keys"],
    now: Int32[Tensor, "batch queries"],
    top: int,
    cut: Cut | None = None,
) -> Int32[Tensor, "batch queries chosen"]:
    (batch, heads, queries, dim), keys = q.shape, k.shape[1]
    if q.dtype == torch.float64 or q.dtype != k.dtype or dim > WIDEST or top > LONGEST or not heads:
        return ref.index_top_k(q, k, weight, at, now, top)
    out = torch.empty(batch, queries, top, dtype=torch.int32, device=q.device)
    if not out.numel():
        return out
    cut = cut or cut_of(q.element_size(), dim, queries)
    room = triton.next_power_of_2(top + 2 * cut.cols)
    tiles = triton.cdiv(queries, cut.rows)
    programs = min(batch * tiles, cut.programs * processors(q.device))
    if 8 * programs < processors(q.device):  # a few queries: one matrix of scores is small, and all of the GPU makes it
        return ref.index_top_k(q, k, weight, at, now, top)
    held, cols = (torch.empty(programs * cut.rows * room, dtype=torch.int32, device=q.device) for _ in range(2))
    _choose[(programs,)](
        *(t.contiguous() for t in (q, k, weight, at, now)), out, held, cols, batch, tiles, heads, queries, keys, dim, top, room,
        ROWS=cut.rows, COLS=cut.cols, D=max(16, triton.next_power_of_2(dim)), HELD=room, TOP=triton.next_power_of_2(top),
        EXACT="ieee" if q.dtype == torch.float32 else "tf32", num_warps=cut.warps, num_stages=cut.stages, maxnreg=cut.registers,
    )  # fmt: skip
    return out
