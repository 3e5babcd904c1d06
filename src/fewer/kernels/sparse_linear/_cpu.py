"""The numba loops of sparse_linear, one per layout; `x` and `out` are float32, what is stored may be smaller.

A thread takes ranges of rows. Where several tokens share a weight, they are taken a panel at a time, as many as registers
hold, and the rows in chunks that stay in the cache of one core: a weight comes from memory once.
"""

from functools import lru_cache

import numba as nb
import numpy as np

from fewer.kernels._bits import bit_dot, bit_unpack
from fewer.kernels._dots import dense_dot, gather_dot, row_dot, tile_dot
from fewer.kernels._simd import widen

CHUNK = 24  # rows, for which 24 x 4096 float32 fill three quarters of a core's second cache
PARTS = 16  # ranges of chunks, each with room of its own


@nb.njit(fastmath=True, cache=True)
def _rows(x, w, low, high, out):
    """`out[:, low:high] = x @ w[low:high].T`: three rows by four tokens at a time, four rows by one for what is left."""
    batch, by_three, by_four = x.shape[0], low + (high - low) // 3 * 3, low + (high - low) // 4 * 4
    for token in range(0, batch - 3, 4):
        for row in range(low, by_three, 3):
            dense_dot(x, w, row, token, out, 3, 4)
        for row in range(by_three, high):
            dense_dot(x, w, row, token, out, 1, 4)
    for token in range(batch // 4 * 4, batch):
        for row in range(low, by_four, 4):
            dense_dot(x, w, row, token, out, 4, 1)
        for row in range(by_four, high):
            dense_dot(x, w, row, token, out, 1, 1)


@nb.njit(parallel=True, fastmath=True, cache=True)
def dense(x, w, out):
    """Plain weights `[rows, in]`."""
    rows = w.shape[0]
    for chunk in nb.prange((rows + CHUNK - 1) // CHUNK):
        _rows(x, w, chunk * CHUNK, min(rows, chunk * CHUNK + CHUNK), out)


@lru_cache
def tiles(height: int):
    """Tiles of one height: a weight column stays in registers while it meets a panel. x is [panels, in, 1, 4 or 6]."""

    @nb.njit(parallel=True, fastmath=True, cache=True)
    def run(x, value, column, start, out):
        blocks, tokens = len(start) - 1, x.shape[2]
        for chunk in nb.prange((blocks + 3) // 4):
            for panel in range(x.shape[0]):
                for block in range(4 * chunk, min(blocks, 4 * chunk + 4)):
                    begin, end, at = np.int64(start[block]), np.int64(start[block + 1]), block * height
                    if tokens == 1:
                        tile_dot(x[panel], value, column, begin, end, out, panel, at, height, 1)
                    elif tokens == 4:
                        tile_dot(x[panel], value, column, begin, end, out, 4 * panel, at, height, 4)
                    else:
                        tile_dot(x[panel], value, column, begin, end, out, 6 * panel, at, height, 6)

    return run


@nb.njit(parallel=True, fastmath=True, cache=True)
def csr_one(x, value, column, start, out):
    """Csr, one token: a gathered dot product a row."""
    for row in nb.prange(len(start) - 1):
        out[0, row] = gather_dot(x[0], value, column, np.int64(start[row]), np.int64(start[row + 1]))


@nb.njit(parallel=True, fastmath=True, cache=True)
def csr(x, value, column, start, out):
    """Csr, a batch: a weight meets a panel of tokens at once. x is [panels, in, 4 or 16]."""
    rows, tokens = len(start) - 1, x.shape[2]
    for chunk in nb.prange((rows + CHUNK - 1) // CHUNK):
        for panel in range(x.shape[0]):
            for row in range(chunk * CHUNK, min(rows, chunk * CHUNK + CHUNK)):
                begin, end = np.int64(start[row]), np.int64(start[row + 1])
                if tokens == 4:
                    row_dot(x[panel], value, column, begin, end, out, 4 * panel, row, 4)
                else:
                    row_dot(x[panel], value, column, begin, end, out, 16 * panel, row, 16)


@nb.njit(fastmath=True, cache=True)
def _tail(x, value, at, mask, begin, out, row):
    """What bytes from `begin` on add, bit by bit."""
    for byte in range(begin, len(mask)):
        for j in range(8):
            if mask[byte] >> j & 1:
                for t in range(len(x)):
                    out[t, row] += widen(value[at]) * x[t, 8 * byte + j]
                at += 1


@nb.njit(fastmath=True, cache=True)
def _count(mask, end):
    """The set bits of the first bytes."""
    total = 0
    for byte in range(end):
        bits = np.int64(mask[byte])
        while bits:
            bits &= bits - 1
            total += 1
    return total


@nb.njit(parallel=True, fastmath=True, cache=True)
def bitmask(x, value, mask, start, out):
    """Bitmask, one token or four: eight columns at a time, the stored weights spread to their places."""
    tokens = x.shape[0]
    for row in nb.prange(len(start) - 1):
        at, end, here = np.int64(start[row]), np.int64(start[row + 1]), mask[row]
        whole = x.shape[1] // 8 if end + 8 <= len(value) else 0  # eight are read at once
        if tokens == 1:
            bit_dot(x, value, here, at, whole, out, 0, row, 1, True)
        else:
            bit_dot(x, value, here, at, whole, out, 0, row, 4, True)
        if whole < len(here):
            _tail(x, value, at + _count(here, whole), here, whole, out, row)


@nb.njit(parallel=True, fastmath=True, cache=True)
def two_four(x, value, place, out):
    """2:4, one token or four: a byte of places is eight columns and four values. `value` is flat."""
    kept, whole, tokens = len(value) // len(place), x.shape[1] // 8, x.shape[0]
    for row in nb.prange(len(place)):
        if tokens == 1:
            bit_dot(x, value, place[row], row * kept, whole, out, 0, row, 1, False)
        else:
            bit_dot(x, value, place[row], row * kept, whole, out, 0, row, 4, False)
        for k in range(4 * whole, kept):  # half a byte
            column = 8 * whole + (place[row, whole] >> 2 * (k & 3) & 3)
            for t in range(tokens):
                out[t, row] += widen(value[row * kept + k]) * x[t, column]


@nb.njit(fastmath=True, cache=True)
def _unpack_bits(value, mask, at, end, cols, out):
    whole = cols // 8 if end + 8 <= len(value) else 0
    bit_unpack(out, value, mask, at, whole, True)
    out[8 * whole :] = 0
    if whole < len(mask):
        at += _count(mask, whole)
        for column in range(8 * whole, cols):
            if mask[column >> 3] >> (column & 7) & 1:
                out[column] = widen(value[at])
                at += 1


@nb.njit(fastmath=True, cache=True)
def _unpack_places(value, places, n, m, bits, out):
    out[:] = 0
    at = 0
    for k in range(len(value)):
        word = np.int32(places[at >> 3])
        if (at & 7) + bits > 8:
            word |= np.int32(places[(at >> 3) + 1]) << 8
        out[k // n * m + ((word >> (at & 7)) & ((1 << bits) - 1))] = widen(value[k])
        at += bits


@nb.njit(parallel=True, fastmath=True, cache=True)
def bitmask_unpacked(x, value, mask, start, out):
    """Bitmask, many tokens: a chunk of rows is unpacked in the cache and multiplied as plain weights."""
    rows, cols = len(start) - 1, x.shape[1]
    each = (rows + PARTS - 1) // PARTS
    for part in nb.prange(PARTS):
        room, stop = np.empty((CHUNK, cols), np.float32), min(rows, part * each + each)
        for low in range(part * each, stop, CHUNK):
            high = min(stop, low + CHUNK)
            for row in range(low, high):
                at, end = np.int64(start[row]), np.int64(start[row + 1])
                _unpack_bits(value, mask[row], at, end, cols, room[row - low])
            _rows(x, room, 0, high - low, out[:, low:])


@nb.njit(parallel=True, fastmath=True, cache=True)
def nm_unpacked(x, value, place, n, m, bits, out):
    """N:M, any number of tokens, as `bitmask_unpacked`."""
    rows, cols = place.shape[0], x.shape[1]
    kept, whole, each = len(value) // rows, cols // 8 if n == 2 and m == 4 else 0, (rows + PARTS - 1) // PARTS
    for part in nb.prange(PARTS):
        room, stop = np.empty((CHUNK, cols), np.float32), min(rows, part * each + each)
        for low in range(part * each, stop, CHUNK):
            high = min(stop, low + CHUNK)
            for row in range(low, high):
                into, from_, to = room[row - low], row * kept, row * kept + kept
                if whole:
                    bit_unpack(into, value, place[row], from_, whole, False)
                _unpack_places(value[from_ + 4 * whole : to], place[row, whole:], n, m, bits, into[8 * whole :])
            _rows(x, room, 0, high - low, out[:, low:])
