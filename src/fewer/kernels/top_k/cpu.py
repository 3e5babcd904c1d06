"""top_k with numba: a radix select per row, eight or eleven bits at a time, never a sort.

A float's bits, with the negative ones turned over, rise as the float does. A histogram of their highest digit says in
which bucket the k-th largest lies; what is in a higher bucket stays, and only that bucket is looked at again. Rows of a
few are ranked by comparing all pairs, many rows at once.
"""

import numba as nb
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_FEW = 64  # rows up to here are compared pair by pair
_ROWS = 64  # so many at once: what vectors like


@nb.njit(inline="always")
def _key(bits, width):
    """A signed number that rises with the float; -0.0 is 0.0."""
    low = np.int64((np.uint64(1) << np.uint64(width - 1)) - np.uint64(1))
    key = bits ^ ((bits >> (width - 1)) & low)
    return key + (key == -1)  # only -0.0 comes to -1


@nb.njit(cache=True)
def _row(bits, k, width, digit, keep, key, left, count):
    """Mark the k largest, `digit` bits at a time; `key`, `left` and `count` are room to work in."""
    n = bits.shape[0]
    for i in range(n):
        key[i] = _key(bits[i], width)
    shift = np.uint64(width - digit)
    offset = 1 << (digit - 1)
    count[:] = 0
    for i in range(n):
        count[np.uint64((key[i] >> shift) + offset)] += 1
    bucket = (1 << digit) - 1
    while count[bucket] < k:
        k -= count[bucket]
        bucket -= 1
    alive = 0
    top = bucket - offset
    for i in range(n):
        keep[i] = (key[i] >> shift) > top
    for i in range(n):
        left[alive] = i
        alive += (key[i] >> shift) == top
    _bucket(key, left, alive, k, shift, digit, keep, count)


@nb.njit(cache=True)
def _bucket(key, left, alive, k, shift, digit, keep, count):
    """The same again within the bucket, digit by digit; equals in order of index."""
    while 0 < k < alive and shift > 0:
        step = min(np.uint64(digit), shift)
        shift -= step
        mask = (1 << step) - 1
        count[:] = 0
        for i in range(alive):
            count[np.uint64((key[left[i]] >> shift) & mask)] += 1
        bucket = mask
        while count[bucket] < k:
            k -= count[bucket]
            bucket -= 1
        still = 0
        for i in range(alive):
            place = left[i]
            mine = (key[place] >> shift) & mask
            keep[place] = mine > bucket
            left[still] = place
            still += mine == bucket
        alive = still
    for i in range(min(k, alive)):
        keep[left[i]] = True


@nb.njit(parallel=True, cache=True)
def _rows(bits, k, width, keep, tasks):
    rows, n = bits.shape
    digit = 8 if n < 1024 else 11  # clearing the counts must not cost more than counting
    for task in nb.prange(tasks):
        key, left, count = np.empty(n, bits.dtype), np.empty(n, np.uint32), np.empty(1 << digit, np.uint32)
        for row in range(task * rows // tasks, (task + 1) * rows // tasks):
            if k[row] >= n:
                keep[row] = True
            elif k[row] > 0:
                _row(bits[row], k[row], width, digit, keep[row], key, left, count)


@nb.njit(parallel=True, cache=True)
def _short_rows(bits, k, width, keep, tasks):
    """An element stays if fewer than k are better than it, or equal and earlier."""
    rows, n = bits.shape
    for task in nb.prange(tasks):
        key, better = np.empty((n, _ROWS), bits.dtype), np.empty((n, _ROWS), np.int32)
        for start in range(task * rows // tasks, (task + 1) * rows // tasks, _ROWS):
            some = min(_ROWS, (task + 1) * rows // tasks - start)
            better[:] = 0
            for r in range(some):
                for i in range(n):
                    key[i, r] = _key(bits[start + r, i], width)
            for i in range(n):
                for j in range(i):
                    for r in range(_ROWS):
                        earlier = np.int32(key[j, r] >= key[i, r])
                        better[i, r] += earlier
                        better[j, r] += np.int32(1) - earlier
            for r in range(some):
                for i in range(n):
                    keep[start + r, i] = better[i, r] < k[start + r]


def top_k(score: Float[Tensor, "*rows n"], k: int | Int[Tensor, "*rows"]) -> Bool[Tensor, "*rows n"]:
    keep = torch.zeros(score.shape, dtype=torch.bool)
    n = score.shape[-1]
    if not score.numel():
        return keep
    width = score.element_size() * 8
    bits = score.contiguous().view(-1, n).view(getattr(torch, f"int{width}")).numpy()
    each = torch.as_tensor(k).expand(score.shape[:-1]).reshape(-1).long().numpy()
    tasks = min(len(each), 4 * nb.get_num_threads())
    (_short_rows if n <= _FEW else _rows)(bits, each, width, keep.view(-1, n).numpy(), tasks)
    return keep
