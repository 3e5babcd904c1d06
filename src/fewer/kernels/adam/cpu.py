"""adam with numba: a row's gradient is gathered, used and forgotten while it lies in the first cache."""

import numba as nb
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels._simd import threads
from fewer.kernels.collect.cpu import by_atom
from fewer.layout import Codes

from . import Move

Rows = Float[Tensor, "size dim"]


@nb.njit(parallel=True, fastmath=True, cache=True)
def _adam(w, first, second, start, whose, amount, y, rate, beta1, beta2, root, eps, unit, tasks):
    """`rate` and `root` hold the corrections of the two moments: w -= rate m / (root sqrt(v) + eps)."""
    size, dim = w.shape
    keep1, keep2 = np.float32(beta1), np.float32(beta2)
    new1, new2 = np.float32(1 - beta1), np.float32(1 - beta2)
    by, scale, tiny = np.float32(rate), np.float32(root), np.float32(eps)
    for task in nb.prange(tasks):
        g = np.empty(dim, np.float32)
        for atom in range(task * size // tasks, (task + 1) * size // tasks):
            row, m, v = w[atom], first[atom], second[atom]
            g[:] = np.float32(0)
            for at in range(start[atom], start[atom + 1]):
                weight, other = amount[at], y[whose[at]]
                for d in range(dim):
                    g[d] += weight * other[d]
            along = np.float32(0)
            if unit:
                for d in range(dim):
                    along += g[d] * row[d]
            squares = np.float32(0)
            for d in range(dim):
                here = g[d] - along * row[d]
                m[d] = keep1 * m[d] + new1 * here
                v[d] = keep2 * v[d] + new2 * here * here
                row[d] -= by * m[d] / (scale * np.sqrt(v[d]) + tiny)
                squares += row[d] * row[d]
            if unit:
                short = np.float32(1) / np.sqrt(squares)
                for d in range(dim):
                    row[d] *= short


def adam(
    w: Rows, first: Rows, second: Rows, codes: Codes | None, y: Float[Tensor, "rows dim"], move: Move
) -> tuple[Rows, Rows, Rows]:
    threads()
    state = [
        t if t.dtype == torch.float32 and t.is_contiguous() else t.float().contiguous() for t in (w, first, second)
    ]
    if codes is None:
        whose = np.arange(len(w) + 1)
        uses = whose, whose[:-1].astype(np.int32), np.ones(len(w), np.float32)
    else:
        uses = by_atom(codes.index.contiguous().numpy(), codes.value.detach().float().contiguous().numpy(), codes.size)
    a, b = move.corrected
    rows = (t.detach().numpy() for t in state)
    tasks = 8 * nb.get_num_threads()
    _adam(
        *rows,
        *uses,
        y.detach().float().contiguous().numpy(),
        move.rate * a,
        *move.betas,
        b**0.5,
        move.eps,
        move.unit,
        tasks,
    )
    return tuple(new.to(old.dtype) for new, old in zip(state, (w, first, second), strict=True))  # type: ignore[return-value]
