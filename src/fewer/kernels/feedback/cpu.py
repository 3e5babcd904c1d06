"""feedback with numba: a task owns some outputs, and its piece of the leaf stays in the first cache."""

import numba as nb
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.kernels._simd import threads

WIDE = 128  # outputs of a task


@nb.njit(fastmath=True, cache=True)
def _choose(v, price, n, width, keep):
    """An input stays if fewer than n are dearer, or as dear and earlier."""
    m = len(v)
    cost, better = np.empty((m, WIDE), np.float32), np.zeros((m, WIDE), np.int32)
    for i in range(m):
        for t in range(width):
            cost[i, t] = v[i, t] * v[i, t] * price[i]
        for j in range(i):
            for t in range(width):
                earlier = np.int32(cost[j, t] >= cost[i, t])
                better[i, t] += earlier
                better[j, t] += np.int32(1) - earlier
    for i in range(m):
        for t in range(width):
            keep[i, t] = better[i, t] < n


@nb.njit(parallel=True, fastmath=True, cache=True)
def _feedback(v, u, price, n, m, out, keep):
    (inputs, outs), group = v.shape, max(m, 1)
    for task in nb.prange((outs + WIDE - 1) // WIDE):
        begin, end = task * WIDE, min(outs, task * WIDE + WIDE)
        width = end - begin
        lost = np.empty((inputs, WIDE), np.float32)
        for j in range(inputs):
            first = j - j % group
            if j == first:  # what the group's inputs owe to those before it
                for k in range(j, j + group):
                    for t in range(width):
                        out[k, begin + t] = v[k, begin + t]
                    for i in range(j):
                        share = u[i, k]
                        for t in range(width):
                            out[k, begin + t] -= share * lost[i, t]
                if m:
                    _choose(out[j : j + m, begin:end], price[j : j + m], n, width, keep[j : j + m, begin:end])
            for i in range(first, j):
                share = u[i, j]
                for t in range(width):
                    out[j, begin + t] -= share * lost[i, t]
            back = np.float32(1) / u[j, j]
            for t in range(width):
                lost[j, t] = np.float32(0) if keep[j, begin + t] else out[j, begin + t] * back


def feedback(
    v: Float[Tensor, "in out"],
    u: Float[Tensor, "in in"],
    price: Float[Tensor, " in"],
    keep: Bool[Tensor, "in out"],
    n: int = 0,
    m: int = 0,
) -> tuple[Float[Tensor, "in out"], Bool[Tensor, "in out"]]:
    threads()
    out, kept = torch.empty(v.shape), keep.clone()
    given = (t.float().contiguous().numpy() for t in (v, u, price))
    _feedback(*given, n, m, out.numpy(), kept.numpy())
    return out.to(v.dtype), kept
