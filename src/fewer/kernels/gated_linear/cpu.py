"""gated_linear with numba: a thread owns some outputs, and adds one column after the other to them."""

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor

from fewer.kernels._simd import threads, view, widen


@nb.njit(cache=True)
def _needed(x, reach, cut, index):
    """Set to zero what is not; list the inputs that some token needs, and say how many they are."""
    count = 0
    for i in range(x.shape[1]):
        far, some = np.float32(1) if len(reach) == 0 else reach[i], False
        for t in range(x.shape[0]):
            if abs(x[t, i]) * far > cut:
                some = True
            else:
                x[t, i] = np.float32(0)
        if some:
            index[count] = i
            count += 1
    return count


@nb.njit(fastmath=True, cache=True, inline="always")
def _four(acc, w, a, b, c, e, va, vb, vc, ve, begin, end):
    for d in range(begin, end):
        acc[d] += va * widen(w[a, d]) + vb * widen(w[b, d]) + vc * widen(w[c, d]) + ve * widen(w[e, d])


@nb.njit(parallel=True, fastmath=True, cache=True)
def _columns(x, reach, cut, w, scale, bias, index, wide, out):
    tokens, size = out.shape
    count = _needed(x, reach, cut, index)
    for part in nb.prange((size + wide - 1) // wide):
        begin, end = part * wide, min(size, part * wide + wide)
        for t in range(tokens):
            out[t, begin:end] = np.float32(0)
        for j in range(0, count - count % 4, 4):
            a, b, c, e = index[j], index[j + 1], index[j + 2], index[j + 3]
            for t in range(tokens):
                _four(out[t], w, a, b, c, e, x[t, a], x[t, b], x[t, c], x[t, e], begin, end)
        for j in range(count - count % 4, count):
            a = index[j]
            for t in range(tokens):
                va = x[t, a]
                for d in range(begin, end):
                    out[t, d] += va * widen(w[a, d])
        for t in range(tokens):
            if len(scale):
                for d in range(begin, end):
                    out[t, d] *= scale[d]
            if len(bias):
                for d in range(begin, end):
                    out[t, d] += bias[d]


def gated_linear(
    x: Float[Tensor, "*b n_in"],
    w: Float[Tensor, "n_out n_in"] | Int8[Tensor, "n_out n_in"],
    reach: Float[Tensor, " n_in"] | None = None,
    cut: float = 0.0,
    scale: Float[Tensor, " n_out"] | None = None,
    bias: Float[Tensor, " n_out"] | None = None,
) -> Float[Tensor, "*b n_out"]:
    threads()
    rows, cols = w.shape
    flat = x.detach().reshape(-1, cols).to(torch.float32, copy=True)
    out = torch.empty(len(flat), rows)
    given = [np.empty(0, np.float32) if t is None else view(t.detach().float()) for t in (reach, scale, bias)]
    wide = max(256, -(-rows // torch.get_num_threads() // 64) * 64)
    index = np.empty(cols, np.int32)
    _columns(flat.numpy(), given[0], np.float32(cut), view(w.mT), given[1], given[2], index, wide, out.numpy())
    return out.to(x.dtype).view(*x.shape[:-1], rows)
