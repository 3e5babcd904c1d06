"""collect with numba: uses are put in order of their atoms first, so that a task owns its atoms and nothing is shared."""

import numba as nb
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels._simd import threads
from fewer.layout import Codes


@nb.njit(cache=True)
def by_atom(index, value, size):
    """Where each atom's uses begin, and of which row and with what value they are; those of value 0 are left out."""
    start = np.zeros(size + 1, np.int64)
    for row in range(index.shape[0]):
        for j in range(index.shape[1]):
            start[index[row, j] + 1] += value[row, j] != 0
    for i in range(size):
        start[i + 1] += start[i]
    place = start[:-1].copy()
    whose, amount = np.empty(start[size], np.int32), np.empty(start[size], np.float32)
    for row in range(index.shape[0]):
        for j in range(index.shape[1]):
            if value[row, j] != 0:
                at = place[index[row, j]]
                whose[at], amount[at] = row, value[row, j]
                place[index[row, j]] = at + 1
    return start, whose, amount


@nb.njit(parallel=True, fastmath=True, cache=True)
def _collect(start, whose, amount, y, out):
    for atom in nb.prange(out.shape[0]):
        total = out[atom]
        total[:] = np.float32(0)
        for at in range(start[atom], start[atom + 1]):
            weight, row = amount[at], y[whose[at]]
            for d in range(total.shape[0]):
                total[d] += weight * row[d]


def collect(codes: Codes, y: Float[Tensor, "rows dim"]) -> Float[Tensor, "size dim"]:
    threads()
    out = torch.empty(codes.size, y.shape[1])
    value = codes.value.detach().float().contiguous().numpy()
    start, whose, amount = by_atom(codes.index.contiguous().numpy(), value, codes.size)
    _collect(start, whose, amount, y.detach().float().contiguous().numpy(), out.numpy())
    return out.to(y.dtype)
