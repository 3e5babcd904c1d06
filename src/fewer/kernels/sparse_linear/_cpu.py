"""The numba loops of sparse_linear, one per layout; `x` and `out` are float32, what is stored may be smaller."""

from functools import lru_cache

import numba as nb
import numpy as np

from fewer.kernels._simd import bit_dot, row_dot, tile_dot, widen


@lru_cache
def tiles(height: int):
    """Tiles of one height: a weight column stays in registers while it meets the batch. x is [in, batch]."""

    @nb.njit(parallel=True, fastmath=True, cache=True)
    def run(x, value, column, start, out):
        for block in nb.prange(len(start) - 1):
            begin, end, at = np.int64(start[block]), np.int64(start[block + 1]), block * height
            if x.shape[1] == 1:
                tile_dot(x, value, column, begin, end, out, at, height, 1)
            else:
                for b in range(0, x.shape[1], 4):
                    tile_dot(x[:, b:], value, column, begin, end, out[b:], at, height, 4)

    return run


@nb.njit(parallel=True, fastmath=True, cache=True)
def csr_one(x, value, column, start, out):
    """Csr, one token: a gathered dot product a row."""
    for row in nb.prange(len(start) - 1):
        weights, columns = value[start[row] : start[row + 1]], column[start[row] : start[row + 1]]
        total = np.float32(0)
        for j in range(len(weights)):
            total += widen(weights[j]) * x[columns[j]]
        out[row] = total


@nb.njit(parallel=True, fastmath=True, cache=True)
def csr(x, value, column, start, out):
    """Csr, a batch: each weight meets 16 or 8 of the batch at once. x is [in, batch], out [rows, batch]."""
    batch = x.shape[1]
    for row in nb.prange(len(start) - 1):
        begin, end = np.int64(start[row]), np.int64(start[row + 1])
        b = 0
        while b + 16 <= batch:
            row_dot(x[:, b:], value, column, begin, end, out[row, b:], 16)
            b += 16
        if b < batch:
            row_dot(x[:, b:], value, column, begin, end, out[row, b:], 8)


@nb.njit(parallel=True, fastmath=True, cache=True)
def nm(x, value, place, n, m, bits, out):
    """N:M, a batch: find the row's columns once, then as Csr. x is [in, batch], out [rows, batch]."""
    batch, kept = x.shape[1], value.shape[1]
    for row in nb.prange(value.shape[0]):
        columns = np.empty(kept, np.int32)
        for j in range(kept):
            at, here = j * bits, np.int64(0)
            for i in range(bits):  # at most 8 bits, perhaps over two bytes
                here |= ((np.int64(place[row, (at + i) >> 3]) >> ((at + i) & 7)) & 1) << i
            columns[j] = j // n * m + here
        weights = value[row]
        b = 0
        while b + 16 <= batch:
            row_dot(x[:, b:], weights, columns, 0, kept, out[row, b:], 16)
            b += 16
        if b < batch:
            row_dot(x[:, b:], weights, columns, 0, kept, out[row, b:], 8)


@nb.njit(parallel=True, fastmath=True, cache=True)
def two_four_one(x, value, place, out):
    """2:4, one token: a byte holds the places of four weights in eight columns."""
    for row in nb.prange(value.shape[0]):
        weights, places = value[row], place[row]
        total = np.float32(0)
        for j in range(len(places)):
            p, at = np.uint32(places[j]), 8 * j
            total += widen(weights[4 * j]) * x[at + (p & 3)] + widen(weights[4 * j + 1]) * x[at + ((p >> 2) & 3)]
            total += (
                widen(weights[4 * j + 2]) * x[at + 4 + ((p >> 4) & 3)]
                + widen(weights[4 * j + 3]) * x[at + 4 + (p >> 6)]
            )
        out[row] = total


@nb.njit(parallel=True, fastmath=True, cache=True)
def bitmask(x, value, mask, start, out):
    """Bitmask: sixteen columns at a time, the stored weights spread to their places. x is [batch, in], in % 16 == 0."""
    for row in nb.prange(len(start) - 1):
        begin, end = np.int64(start[row]), np.int64(start[row + 1])
        if x.shape[0] == 1:
            bit_dot(x, value, mask[row], begin, end, out, row, 1)
        else:
            for b in range(0, x.shape[0], 4):
                bit_dot(x[b:], value, mask[row], begin, end, out[b:], row, 4)
