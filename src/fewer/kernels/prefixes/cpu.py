"""prefixes with numba: a row's error stays in the first cache while its atoms come by, and go by again."""

import numba as nb
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels._simd import threads
from fewer.layout import Codes


@nb.njit(parallel=True, fastmath=True, cache=True)
def _prefixes(index, value, atoms, y, weight, missed, slope, rest):
    rows, k = index.shape
    dim = y.shape[1]
    for row in nb.prange(rows):
        error = rest[row]  # first the errors, then their sums from the back
        before = y[row]
        for j in range(k):
            amount, atom, now, total = value[row, j], atoms[index[row, j]], error[j], np.float32(0)
            for d in range(dim):
                now[d] = before[d] - amount * atom[d]
                total += now[d] * now[d]
            missed[row, j] = total
            before = now
        for j in range(k - 1, -1, -1):
            atom, now, along, by = atoms[index[row, j]], error[j], np.float32(0), weight[j]
            if j < k - 1:
                after = error[j + 1]
                for d in range(dim):
                    now[d] = by * now[d] + after[d]
                    along += now[d] * atom[d]
            else:
                for d in range(dim):
                    now[d] = by * now[d]
                    along += now[d] * atom[d]
            slope[row, j] = np.float32(-2) * along


def prefixes(
    codes: Codes, atoms: Float[Tensor, "size dim"], y: Float[Tensor, "rows dim"], weight: Float[Tensor, " k"]
) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows k"], Float[Tensor, "rows k dim"]]:
    threads()
    rows, k = codes.index.shape
    missed, slope, rest = torch.empty(rows, k), torch.empty(rows, k), torch.empty(rows, k, y.shape[1])
    given = (t.detach().float().contiguous().numpy() for t in (codes.value, atoms, y, weight))
    _prefixes(codes.index.contiguous().numpy(), *given, missed.numpy(), slope.numpy(), rest.numpy())
    return missed.to(y.dtype), slope.to(y.dtype), rest.to(y.dtype)
