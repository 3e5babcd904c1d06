"""page_bounds with numba: the positive part of q meets the upper ends, the negative part the lower ones."""

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels._gathered import SLOTS, dots
from fewer.kernels._simd import threads, view

CHUNK = 64  # pages; a task takes one of one list


@nb.njit(cache=True)
def _score(q, k, rows, slot, s, row, other, heads):
    if heads == 4:
        dots(q, k, rows, slot, s, row, slot, other, 0, 4)
    elif heads == 2:
        dots(q, k, rows, slot, s, row, slot, other, 0, 2)
    else:
        dots(q, k, rows, slot, s, row, slot, other, 0, 1)


@nb.njit(parallel=True, cache=True)
def _bounds(up, down, low, high, table, scale, out):
    lists, reads = table.shape
    chunks = (reads + CHUNK - 1) // CHUNK
    for task in nb.prange(lists * chunks):
        i, begin = task // chunks, task % chunks * CHUNK
        count, few = min(CHUNK, reads - begin), up.shape[1]
        rows = np.zeros(CHUNK, np.int32)
        for j in range(count):
            rows[j] = max(table[i, begin + j], 0)
        most, least = np.empty((few, CHUNK), np.float32), np.empty((few, CHUNK), np.float32)
        for slot in range(0, count, SLOTS):
            row = 0
            while row < few:
                heads = 4 if few - row >= 4 else 2 if few - row >= 2 else 1
                _score(up[i], high, rows, slot, most, row, low, heads)
                _score(down[i], low, rows, slot, least, row, high, heads)
                row += heads
        for j in range(count):
            for head in range(out.shape[1]):
                best = np.float32(-np.inf)
                if table[i, begin + j] >= 0:
                    for row in range(head * few // out.shape[1], (head + 1) * few // out.shape[1]):
                        best = max(best, most[row, j] + least[row, j])
                out[i, head, begin + j] = scale * best


def page_bounds(
    q: Float[Tensor, "batch heads queries dim"],
    low: Float[Tensor, "pages dim"],
    high: Float[Tensor, "pages dim"],
    table: Int32[Tensor, "batch kv_heads n"],
    scale: float,
) -> Float[Tensor, "batch heads n"]:
    threads()
    few = q.detach().float().reshape(table.shape[0] * table.shape[1], -1, q.shape[-1]).contiguous()
    names = table.reshape(len(few), -1).contiguous().numpy()
    out = torch.empty(len(few), q.shape[1] // table.shape[1], table.shape[-1])
    if out.numel():
        up, down = few.clamp(min=0).numpy(), few.clamp(max=0).numpy()
        _bounds(up, down, view(low), view(high), names, np.float32(scale), out.numpy())
    return out.view(*q.shape[:2], table.shape[-1]).to(torch.promote_types(q.dtype, torch.float32))
