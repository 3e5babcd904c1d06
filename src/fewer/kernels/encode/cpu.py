"""encode with numba: some rows are multiplied at a time, and ranked while their pre-activations lie in a cache.

A row is gone through once. What is above the k-th largest so far waits in a short list, in order; when that is full, the
k best of it stay. So a few hundred of many thousand are ever looked at twice.
"""

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.kernels._simd import threads

from . import ref

AT_ONCE = 1 << 24  # pre-activations in memory at a time
BLOCK = 64  # compared with the threshold at a time
NEAR = np.float32(0.93)  # of the last row's threshold: few rows fall short of it, and little is above it


@nb.njit(fastmath={"nsz", "contract"}, cache=True)
def _kth(work, count, k):
    """The k-th largest of the first `count`, which are put in another order on the way."""
    low, high, at = 0, count - 1, k - 1
    while low < high:
        pivot = work[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while work[i] > pivot:
                i += 1
            while work[j] < pivot:
                j -= 1
            if i <= j:
                work[i], work[j] = work[j], work[i]
                i += 1
                j -= 1
        if at <= j:
            high = j
        elif at >= i:
            low = i
        else:
            break
    return work[at]


@nb.njit(cache=True)
def _cut(score, place, count, k, work):
    """Leave the k best of a list, in order; equals from the front. Returns the least of them."""
    for i in range(count):
        work[i] = score[i]
    least = _kth(work, count, k)
    equal = k
    for i in range(count):
        equal -= score[i] > least
    at = 0
    for i in range(count):
        mine = score[i] == least
        if score[i] > least or (mine and equal > 0):
            score[at], place[at] = score[i], place[i]
            at += 1
            equal -= mine
    return least


@nb.njit(cache=True)
def _above(some, least, by_size):
    """How many of BLOCK neighbours are above a threshold; that their number is known makes this a few instructions."""
    hits = np.int32(0)
    if by_size:
        for i in range(BLOCK):
            hits += np.int32(abs(some[i]) > least)
    else:
        for i in range(BLOCK):
            hits += np.int32(some[i] > least)
    return hits


@nb.njit(cache=True)
def _row(row, by_size, k, guess, score, place, work):
    """Fill the lists' first k with the best of a row and return the least, or -inf if fewer are above the guess."""
    count, n, least, full = 0, row.shape[0], guess, guess > -np.inf
    for first in range(0, n, BLOCK):
        if full and first + BLOCK <= n and _above(row[first : first + BLOCK], least, by_size) == 0:
            continue
        for i in range(first, min(first + BLOCK, n)):
            mine = abs(row[i]) if by_size else row[i]
            if mine > least or not full:
                score[count], place[count] = mine, i
                count += 1
        if count > score.shape[0] - BLOCK:
            least, count, full = _cut(score, place, count, k, work), k, True
    return _cut(score, place, count, k, work) if count >= k else np.float32(-np.inf)


@nb.njit(parallel=True, cache=True)
def _rank(pre, by_size, index, value, tasks):
    """The threshold begins near that of the row before; a row of which too few are above it is done again without."""
    rows, k = index.shape
    room = 3 * k + 2 * BLOCK
    for task in nb.prange(tasks):
        score, place, work = np.empty(room, np.float32), np.empty(room, np.int32), np.empty(room, np.float32)
        guess = np.float32(-np.inf)
        for r in range(task * rows // tasks, (task + 1) * rows // tasks):
            least = _row(pre[r], by_size, k, guess, score, place, work)
            if least == -np.inf:
                least = _row(pre[r], by_size, k, np.float32(-np.inf), score, place, work)
            guess = NEAR * least if least > 0 else np.float32(-np.inf)
            for j in range(k):
                index[r, j], value[r, j] = place[j], pre[r, place[j]]


def encode(
    x: Float[Tensor, "rows in"], w: Float[Tensor, "size in"], b: Float[Tensor, " size"], k: int, by_size: bool
) -> tuple[Int64[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    if x.dtype == torch.float64:
        return ref.encode(x, w, b, k, by_size)
    threads()
    index, value = torch.empty(len(x), k, dtype=torch.int64), torch.empty(len(x), k)
    wide, atoms, bias = x.float(), w.float(), b.float()
    some = max(1, min(len(x), AT_ONCE // len(w)))
    pre = torch.empty(some, len(w))
    for first in range(0, len(x), some):
        rows = wide[first : first + some]
        here = torch.addmm(bias, rows, atoms.mT, out=pre[: len(rows)])
        part = slice(first, first + len(rows))
        tasks = min(len(rows), 4 * nb.get_num_threads())
        _rank(here.numpy(), by_size, index[part].numpy(), value[part].numpy(), tasks)
    return index, value.to(x.dtype)
