"""residual with numba: a row's atoms come by once to be taken off, and again while they lie in a cache."""

import numba as nb
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels._simd import threads
from fewer.layout import Codes


@nb.njit(parallel=True, fastmath=True, cache=True)
def _residual(index, value, atoms, y, bias, error, along, missed):
    rows, k = index.shape
    for row in nb.prange(rows):
        left, total = error[row], np.float32(0)
        for d in range(left.shape[0]):
            left[d] = y[row, d] - bias[d]
        for j in range(k):
            weight = value[row, j]
            if weight != 0:
                atom = atoms[index[row, j]]
                for d in range(left.shape[0]):
                    left[d] -= weight * atom[d]
        for d in range(left.shape[0]):
            total += left[d] * left[d]
        missed[row] = total
        for j in range(k):
            atom, dot = atoms[index[row, j]], np.float32(0)
            for d in range(left.shape[0]):
                dot += left[d] * atom[d]
            along[row, j] = dot


def residual(
    codes: Codes, atoms: Float[Tensor, "size dim"], y: Float[Tensor, "rows dim"], bias: Float[Tensor, " dim"]
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows k"], Float[Tensor, " rows"]]:
    threads()
    (rows, k), dim = codes.index.shape, y.shape[1]
    error, along, missed = torch.empty(rows, dim), torch.empty(rows, k), torch.empty(rows)
    given = (t.detach().float().contiguous().numpy() for t in (codes.value, atoms, y, bias))
    _residual(codes.index.contiguous().numpy(), *given, error.numpy(), along.numpy(), missed.numpy())
    kind = torch.result_type(y, atoms)
    return error.to(atoms.dtype), along.to(kind), missed.to(kind)
