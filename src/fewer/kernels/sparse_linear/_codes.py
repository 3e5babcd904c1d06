"""The numba loop for codes on a grid with nothing left out: each is unpacked once and meets the batch."""

import numba as nb
import numpy as np


@nb.njit(fastmath=True, cache=True)
def _code(value: np.ndarray, bits: int, at: int) -> np.int32:
    """Code `at` of those that lie side by side, from the lowest bit of the first byte on."""
    bit = at * bits
    byte = bit >> 3
    word = np.int32(value[byte])
    if (bit & 7) + bits > 8:
        word |= np.int32(value[byte + 1]) << 8
    return ((word >> (bit & 7)) & ((1 << bits) - 1)) - (1 << (bits - 1))


@nb.njit(parallel=True, fastmath=True, cache=True)
def codes(
    x: np.ndarray,
    value: np.ndarray,
    bits: int,
    scale: np.ndarray,
    zero: np.ndarray,
    apart: np.ndarray,
    column: np.ndarray,
    start: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[b, i] = sum over j of x[b, j] * weight (i, j). x is [batch, in], `value` bytes, `scale` and `zero` [rows, groups].

    The weights of row i in `column[start[i] : start[i + 1]]` are `apart`, whatever their codes say.
    """
    cols, groups = x.shape[1], scale.shape[1]
    wide = cols // groups
    for row in nb.prange(scale.shape[0]):
        weight = np.empty(cols, np.float32)
        for j in range(cols):
            g = j // wide
            weight[j] = (np.float32(_code(value, bits, row * cols + j)) - zero[row, g]) * scale[row, g]
        for t in range(start[row], start[row + 1]):
            weight[column[t]] = apart[t]
        for b in range(x.shape[0]):
            total = np.float32(0)
            for j in range(cols):
                total += x[b, j] * weight[j]
            out[b, row] = total
