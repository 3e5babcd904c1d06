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


@nb.njit(fastmath=True, cache=True)
def _bit_row(x, value, mask, begin, out, row):
    if x.shape[0] == 1:
        bit_dot(x, value, mask, begin, out, row, 1)
    elif x.shape[0] == 4:
        bit_dot(x, value, mask, begin, out, row, 4)
    else:
        for b in range(0, x.shape[0], 8):
            bit_dot(x[b:], value, mask, begin, out[b:], row, 8)


@nb.njit(parallel=True, fastmath=True, cache=True)
def nm(x, value, place, n, m, bits, two_four, out):
    """N:M: the places of a row become bits, then as Bitmask. `two_four` has, for each byte of 2:4 places, its bits."""
    kept = value.shape[0] // place.shape[0]
    for row in nb.prange(place.shape[0]):
        mask, places = np.zeros(x.shape[1] // 8, np.uint8), place[row]
        if n == 2 and m == 4:
            for j in range(len(places)):
                mask[j] = two_four[places[j]]
            if kept % 4:
                mask[-1] &= 15
        else:
            at = 0
            for group in range(0, kept // n * m, m):
                for _ in range(n):
                    word = np.int32(places[at >> 3])
                    if (at & 7) + bits > 8:
                        word |= np.int32(places[(at >> 3) + 1]) << 8
                    column = group + ((word >> (at & 7)) & ((1 << bits) - 1))
                    mask[column >> 3] |= np.uint8(1 << (column & 7))
                    at += bits
        _bit_row(x, value, mask, row * kept, out, row)


@nb.njit(parallel=True, fastmath=True, cache=True)
def bitmask(x, value, mask, start, out):
    """Bitmask: eight columns at a time, the stored weights spread to their places. x is [batch, in], in % 8 == 0."""
    for row in nb.prange(len(start) - 1):
        _bit_row(x, value, mask[row], np.int64(start[row]), out, row)
