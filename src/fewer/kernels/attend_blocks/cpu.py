"""attend_blocks with numba: a tile of queries meets its keys a chunk at a time, in a core's second cache.

Scores are made turned, keys by queries: then neither keys nor values need turning, and a vector holds one score of each
of several queries. Of a block that is read in part, keys that no query of the tile may read are left out.
"""

import math

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels._outer import HIGH, outer
from fewer.kernels._simd import threads, view, widen
from fewer.kernels._softmax import LANES, LOW, bound_scores, soften
from fewer.layout import Blocks

QUERIES, KEYS, WIDE = 128, 128, 2 * LANES  # a tile, a chunk, what columns are rounded to
LEAST = np.float32(LOW)


@nb.njit(cache=True)
def _list(some, count, all_, full, wide, place, low, high, rows, asks):
    """The keys to meet: of blocks read in part those whose place is from `low` to `high`, then all of whole blocks."""
    n, keys = 0, len(place)
    for j in range(count):
        for key in range(some[j] * wide, min(keys, some[j] * wide + wide)):
            rows[n], asks[n] = key, True
            n += (place[key] >= low) & (place[key] <= high)
    for j in range(full):
        for key in range(all_[j] * wide, min(keys, all_[j] * wide + wide)):
            rows[n], asks[n] = key, False
            n += 1
    return n


@nb.njit(cache=True)
def _pack(x, rows, begin, count, room):
    """These rows in float32, then zeros to the next round number."""
    for i in range(count):
        row = x[rows[begin + i]]
        for j in range(len(row)):
            room[i, j] = widen(row[j])
    for i in range(count, (count + HIGH - 1) // HIGH * HIGH):
        room[i] = np.float32(0)


@nb.njit(cache=True)
def _hide(s, rows, asks, begin, count, place, now, window):
    for i in range(count):
        if asks[begin + i]:
            at, line = place[rows[begin + i]], s[i]
            for j in range(len(now)):
                seen = (at <= now[j]) & ((window == 0) | (at > now[j] - window))
                line[j] = line[j] if seen else LEAST


@nb.njit(cache=True)
def _tile(q, k, v, rows, asks, total, place, now, window, cap, keys, values, s, out, state):
    """`q` is [dim, queries]; `out` [queries, columns] sums weighed values, `state` holds largest scores and sums of weights."""
    out[:], state[0], state[1] = np.float32(0), LEAST, np.float32(0)
    for begin in range(0, total, KEYS):
        count = min(KEYS, total - begin)
        full = (count + HIGH - 1) // HIGH * HIGH
        _pack(k, rows, begin, count, keys)
        _pack(v, rows, begin, count, values)
        for column in range(0, q.shape[1], WIDE):
            for i in range(0, full, HIGH):
                outer(keys, q, s, i, column, q.shape[0], 0, 0)
        if cap > 0:
            for i in range(count):
                bound_scores(s, i, q.shape[1], cap)
        _hide(s, rows, asks, begin, count, place, now, window)
        for first in range(0, q.shape[1], LANES):
            soften(s, count, first, state[0], state[1], state[2])
        if begin:
            for i in range(len(now)):
                if state[2, i] != 1:
                    out[i] *= state[2, i]
        for column in range(0, out.shape[1], WIDE):
            for i in range(0, out.shape[0], HIGH):
                outer(s, values, out, i, column, count, 1, 1)


@nb.njit(cache=True)
def _finish(out, state, to, lse):
    for i in range(len(lse)):
        weight = state[1, i]
        lse[i] = state[0, i] + math.log(weight) if weight > 0 else -np.inf
        share = np.float32(1) / weight if weight > 0 else np.float32(0)
        for j in range(to.shape[1]):
            to[i, j] = out[i, j] * share


@nb.njit(parallel=True, cache=True)
def _attend(q, k, v, some, counts, all_, fulls, high, wide, place, now, scale, window, cap, order, out, lse):
    batch, heads, queries, dim = q.shape
    group, tall = heads // k.shape[1], min(QUERIES, high)
    cuts = (high + tall - 1) // tall  # tiles in a block of queries
    tiles, columns = len(order), (v.shape[3] + WIDE - 1) // WIDE * WIDE
    broad = (tall + WIDE - 1) // WIDE * WIDE
    for task in nb.prange(batch * heads * tiles):
        which, tile = task % (batch * heads), order[task // (batch * heads)]
        b, h = which // heads, which % heads
        block, begin = tile // cuts, tile // cuts * high + tile % cuts * tall
        end = min(queries, begin + tall, tile // cuts * high + high)
        if begin >= end:
            continue
        kv, at = h // group, (b % len(counts), h * counts.shape[1] // heads, block)
        here, mine = now[b, begin:end], place[b, kv]
        least = max(0, here.min() - window + 1) if window else 0
        length = (counts[at] + fulls[at]) * wide + 1
        rows, asks = np.empty(length, np.int64), np.empty(length, np.bool_)
        total = _list(some[at], counts[at], all_[at], fulls[at], wide, mine, least, here.max(), rows, asks)
        turned = np.zeros((dim, broad), np.float32)
        for i in range(begin, end):
            for j in range(dim):
                turned[j, i - begin] = widen(q[b, h, i, j]) * scale
        keys, values = np.empty((KEYS, dim), np.float32), np.zeros((KEYS, columns), np.float32)
        s, sums, state = (
            np.empty((KEYS, broad), np.float32),
            np.empty((broad, columns), np.float32),
            np.empty((3, broad), np.float32),
        )
        _tile(turned, k[b, kv], v[b, kv], rows, asks, total, mine, here, window, cap, keys, values, s, sums, state)
        _finish(sums, state, out[b, h, begin:end], lse[b, h, begin:end])


def attend_blocks(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys out"],
    blocks: Blocks,
    at: Int32[Tensor, "batch kv_heads keys"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    threads()
    out, lse = torch.empty(*q.shape[:-1], v.shape[-1]), torch.empty(q.shape[:-1])
    high, wide = blocks.block
    count = blocks.shape[2] * -(-high // min(QUERIES, high))
    parts = nb.get_num_threads()
    order = torch.cat([torch.arange(count)[i::parts] for i in range(parts)])  # a thread's share is not the last tiles
    lists = (blocks.kv_indices, blocks.kv_num_blocks, blocks.full_kv_indices, blocks.full_kv_num_blocks)
    named = [t.contiguous().numpy() for t in lists]
    read = (*named, high, wide, at.contiguous().numpy(), now.contiguous().numpy())
    _attend(
        view(q),
        view(k),
        view(v),
        *read,
        np.float32(scale),
        window,
        np.float32(cap),
        order.numpy(),
        out.numpy(),
        lse.numpy(),
    )
    return out.to(q.dtype), lse.to(torch.promote_types(q.dtype, torch.float32))
