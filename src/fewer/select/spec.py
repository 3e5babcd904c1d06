"""What `select` means, in loops: the specification that the fast paths are tested against."""

import itertools

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.core import Budget


def spec(score: Float[Tensor, "*rows n"], budget: Budget) -> Bool[Tensor, "*rows n"]:
    """Put every unit into the pool where it competes, rank each pool by hand, keep the first that the budget allows.

    >>> from fewer.core.budget import budget
    >>> spec(torch.tensor([1.0, 3.0, 3.0, 3.0]), budget("2")).tolist()
    [False, True, True, False]
    """
    (h, w), shape = budget.unit, score.shape
    table = score.reshape(1, -1) if score.ndim == 1 else score
    *lead, rows, cols = table.shape
    budget.check(rows, cols)
    pools: dict[tuple, list] = {}
    for *place, i, j in itertools.product(*map(range, (*lead, rows // h, cols // w))):
        cells = [(*place, i * h + a, j * w + b) for a in range(h) for b in range(w)]
        value = sum(float(table[cell]) for cell in cells)
        if value != value:
            raise ValueError("a score is NaN: a method must rank everything")
        if budget.group:
            pool: tuple = (*place, i, j // budget.group)
        else:
            pool = {"row": (*place, i), "column": (*place, "column", j), "tensor": ()}[budget.scope]
        pools.setdefault(pool, []).append((value, cells))
    keep = torch.zeros_like(table, dtype=torch.bool)
    for units in pools.values():
        best_first = sorted(units, key=lambda unit: -unit[0])  # sorted is stable: ties stay in order of index
        for _, cells in best_first[: budget.of(len(units))]:
            for cell in cells:
                keep[cell] = True
    return keep.reshape(shape)
