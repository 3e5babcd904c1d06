"""places with numba: eight columns are looked at in one word, most of which hold nothing."""

import numba as nb
import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from fewer.kernels._simd import threads


@nb.njit(parallel=True, cache=True)
def _most(words, keep):
    """How many the fullest row keeps."""
    counts = np.zeros(keep.shape[0], np.int64)
    for row in nb.prange(keep.shape[0]):
        for w in range(words.shape[1]):
            if words[row, w] != 0:
                for i in range(8 * w, 8 * w + 8):
                    counts[row] += keep[row, i]
        for i in range(8 * words.shape[1], keep.shape[1]):
            counts[row] += keep[row, i]
    return counts.max()


@nb.njit(parallel=True, cache=True)
def _places(words, keep, out):
    k = out.shape[1]
    for row in nb.prange(out.shape[0]):
        found = 0
        for w in range(words.shape[1]):
            if words[row, w] != 0 and found < k:
                for i in range(8 * w, 8 * w + 8):
                    if keep[row, i] and found < k:
                        out[row, found] = i
                        found += 1
        for i in range(8 * words.shape[1], keep.shape[1]):
            if keep[row, i] and found < k:
                out[row, found] = i
                found += 1
        for j in range(found, k):
            out[row, j] = -1


def places(keep: Bool[Tensor, "rows n"], k: int | None) -> Int64[Tensor, "rows k"]:
    threads()
    flags = keep.contiguous().numpy()
    whole = keep.shape[1] % 8 == 0 and flags.size
    words = flags.view(np.uint64) if whole else np.zeros((len(flags), 0), np.uint64)
    most = k if k is not None else int(_most(words, flags)) if len(flags) else 0
    out = torch.empty(len(keep), most, dtype=torch.int64)
    _places(words, flags, out.numpy())
    return out
