"""attend_pages with numba: the slots that may be read are listed, the lists cut evenly among threads, and merged.

A chunk of slots is scored, softened and weighed before the next one is met: keys and values come from memory once.
"""

import math

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels._gathered import SLOTS, VECTORS, dots, weigh
from fewer.kernels._simd import threads, view
from fewer.kernels._softmax import LANES, LOW, bound_scores, row_exp, row_max

CHUNK = 64  # slots, whose keys and values are asked for a chunk ahead: 64 KB of the second cache
LEAST = np.float32(LOW)


@nb.njit(parallel=True, cache=True)
def _list(table, where, low, high, rows, place, count):
    """For each table, the slots whose place is from `low` to `high`; the rest of its list names the last one again."""
    page = where.shape[1]
    for i in nb.prange(len(table)):
        n = 0
        for name in table[i]:
            if name >= 0:
                for slot in range(page):
                    at = where[name, slot]
                    rows[i, n], place[i, n] = name * page + slot, at
                    n += (at >= low[i]) & (at <= high[i])
        count[i] = n
        rows[i, n:] = rows[i, max(n - 1, 0)] if n else 0


@nb.njit(cache=True)
def _score(q, k, rows, slot, s, row, column, v, heads):
    if heads == 4:
        dots(q, k, rows, slot, s, row, column, v, 0, 4)
    elif heads == 2:
        dots(q, k, rows, slot, s, row, column, v, 0, 2)
    else:
        dots(q, k, rows, slot, s, row, column, v, 0, 1)


@nb.njit(cache=True)
def _weigh(s, v, rows, slot, count, out, row, k, heads):
    """Columns in fours of vectors, in vectors, and one by one."""
    columns, step = v.shape[1], VECTORS * LANES
    many, some = columns // step * step, columns // LANES * LANES
    for column in range(0, many, step):
        if heads == 4:
            weigh(s, v, rows, slot, count, out, row, column, k, CHUNK, 4, VECTORS)
        elif heads == 2:
            weigh(s, v, rows, slot, count, out, row, column, k, CHUNK, 2, VECTORS)
        else:
            weigh(s, v, rows, slot, count, out, row, column, k, CHUNK, 1, VECTORS)
    for head in range(row, row + heads):
        for column in range(many, some, LANES):
            weigh(s, v, rows, slot, count, out, head, column, k, CHUNK, 1, 1)
        for column in range(some, columns):
            weigh(s, v, rows, slot, count, out, head, column, k, CHUNK, 1, 0)


@nb.njit(cache=True)
def _heads(left):
    return 4 if left >= 4 else 2 if left >= 2 else 1


@nb.njit(cache=True)
def _hide(s, place, slot, count, now, window):
    """What a query may not read, of several whose places differ. Its heads lie `len(now)` rows apart."""
    for row in range(len(s)):
        last = now[row % len(now)]
        for j in range(count):
            at = place[slot + j]
            if at > last or (window > 0 and at <= last - window):
                s[row, j] = LEAST


@nb.njit(cache=True)
def _piece(q, k, v, rows, place, begin, end, now, window, cap, s, out, best, total):
    """The slots `begin` .. `end` of one list, for all its queries: sums of weighed values, largest score, sum of weights."""
    out[:], best[:], total[:] = np.float32(0), LEAST, np.float32(0)
    for slot in range(begin, end, CHUNK):
        count = min(CHUNK, end - slot)
        full = (count + LANES - 1) // LANES * LANES
        for j in range(0, full, SLOTS):
            row = 0
            while row < len(q):
                heads = _heads(len(q) - row)
                _score(q, k, rows, slot + j, s, row, j, v, heads)
                row += heads
        if cap > 0:
            for row in range(len(q)):
                bound_scores(s, row, full, cap)
        s[:, count:full] = LEAST
        if len(now) > 1:
            _hide(s, place, slot, count, now, window)
        for row in range(len(q)):
            most = max(best[row], row_max(s, row, full))
            if most > best[row] > LEAST:
                less = np.float32(math.exp(best[row] - most))
                total[row] *= less
                out[row] *= less
            best[row] = most
            total[row] += row_exp(s, row, full, most)
        row = 0
        while row < len(q):
            heads = _heads(len(q) - row)
            _weigh(s, v, rows, slot, count, out, row, k, heads)
            row += heads


@nb.njit(parallel=True, cache=True)
def _pieces(q, k, v, rows, place, start, now, window, cap, out, best, total, tasks):
    """Each task takes as many slots as the others, of whatever lists they are; piece `list + task` is its alone."""
    for task in nb.prange(tasks):
        low, high = task * start[-1] // tasks, (task + 1) * start[-1] // tasks
        s = np.empty((q.shape[1], CHUNK), np.float32)
        for i in range(len(q)):
            begin, end, p = max(low, start[i]) - start[i], min(high, start[i + 1]) - start[i], i + task
            if begin < end:
                mine = now[i * len(now) // len(q)]
                _piece(q[i], k, v, rows[i], place[i], begin, end, mine, window, cap, s, out[p], best[p], total[p])


@nb.njit(cache=True)
def _merge(start, parts, best, total, tasks, out, lse):
    """A list's pieces, each shrunk to the largest score of all."""
    for i in range(len(out)):
        out[i], lse[i] = np.float32(0), -np.inf
        for row in range(out.shape[1]):
            most, weight = LEAST, np.float32(0)
            for task in range(tasks):
                if max(task * start[-1] // tasks, start[i]) < min((task + 1) * start[-1] // tasks, start[i + 1]):
                    most = max(most, best[i + task, row])
            for task in range(tasks):
                if max(task * start[-1] // tasks, start[i]) < min((task + 1) * start[-1] // tasks, start[i + 1]):
                    share = np.float32(math.exp(best[i + task, row] - most))
                    weight += share * total[i + task, row]
                    out[i, row] += share * parts[i + task, row]
            if weight > 0:
                out[i, row] *= np.float32(1) / weight
                lse[i, row] = most + math.log(weight)


def attend_pages(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "pages page dim"],
    v: Float[Tensor, "pages page out"],
    at: Int32[Tensor, "pages page"],
    table: Int32[Tensor, "batch kv_heads reads"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    threads()
    lists, tasks = table.shape[0] * table.shape[1], nb.get_num_threads()
    few = (scale * q.detach().float()).reshape(lists, -1, q.shape[-1]).contiguous()
    high = now.amax(-1).repeat_interleave(table.shape[1])
    low = (now.amin(-1) - window + 1 if window else torch.zeros_like(now[:, 0])).clamp(min=0)
    low = low.repeat_interleave(table.shape[1])
    rows = torch.empty(lists, table.shape[-1] * at.shape[1] + CHUNK + LANES, dtype=torch.int32)
    place, counts = torch.empty_like(rows), torch.zeros(lists + 1, dtype=torch.int64)
    names = table.reshape(lists, -1)
    _list(*(t.contiguous().numpy() for t in (names, at, low, high)), rows.numpy(), place.numpy(), counts[1:].numpy())
    start = counts.cumsum(0).numpy()
    parts = torch.empty(lists + tasks, few.shape[1], v.shape[-1])
    best, total = torch.empty(2, *parts.shape[:2]).numpy()
    keys, values = view(k.flatten(0, 1)), view(v.flatten(0, 1))
    listed = rows.numpy(), place.numpy(), start, now.contiguous().numpy(), window, np.float32(cap)
    _pieces(few.numpy(), keys, values, *listed, parts.numpy(), best, total, tasks)
    out, lse = torch.empty(lists, *parts.shape[1:]), torch.empty(lists, parts.shape[1])
    _merge(start, parts.numpy(), best, total, tasks, out.numpy(), lse.numpy())
    return out.view(*q.shape[:-1], -1).to(q.dtype), lse.view(q.shape[:-1]).to(
        torch.promote_types(q.dtype, torch.float32)
    )
