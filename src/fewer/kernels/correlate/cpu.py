"""correlate with numba: a row stays in the first cache while its atoms come by."""

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.kernels._simd import threads


@nb.njit(parallel=True, fastmath=True, cache=True)
def _correlate(y, atoms, index, out):
    for row in nb.prange(index.shape[0]):
        here = y[row]
        for j in range(index.shape[1]):
            atom, total = atoms[index[row, j]], np.float32(0)
            for d in range(here.shape[0]):
                total += here[d] * atom[d]
            out[row, j] = total


def correlate(
    y: Float[Tensor, "rows dim"], atoms: Float[Tensor, "size dim"], index: Int64[Tensor, "rows k"]
) -> Float[Tensor, "rows k"]:
    threads()
    out = torch.empty(index.shape)
    wide, all_atoms = (t.detach().float().contiguous() for t in (y, atoms))
    _correlate(wide.numpy(), all_atoms.numpy(), index.contiguous().numpy(), out.numpy())
    return out.to(torch.result_type(y, atoms))
