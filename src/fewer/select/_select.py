"""Scores and a budget in, True where one stays out."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.core import Budget
from fewer.kernels.top_k import top_k


def select(score: Float[Tensor, "*rows n"], budget: Budget) -> Bool[Tensor, "*rows n"]:
    """Keep the highest scores that the budget allows; ties go to the lower index, on every device.

    Counted over the last dimension (`per row`), the one before (`per column`), everything (`per tensor`) or each
    M neighbours of a row (N:M). A unit of h x w is ranked by the sum of its scores and stays or goes whole. A count
    that is larger than what there is keeps everything. `spec.py` says the same in loops.

    ValueError: a NaN score; a shape that does not divide into units or groups; a budget shared by several tensors.

    >>> from fewer.core.budget import budget
    >>> score = torch.tensor([[1.0, 5.0, 2.0, 2.0], [0.0, 1.0, 1.0, 9.0]])
    >>> select(score, budget("50%")).int()
    tensor([[0, 1, 1, 0],
            [0, 1, 0, 1]], dtype=torch.int32)
    >>> select(score, budget("1:2")).int()
    tensor([[0, 1, 1, 0],
            [0, 1, 0, 1]], dtype=torch.int32)
    >>> select(score, budget("50% of 2x2 per tensor")).int()
    tensor([[0, 0, 1, 1],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    if budget.joint:
        raise ValueError(f"budget '{budget}' is shared by several tensors; write 'per tensor' or use select_jointly")
    ranked = in_units(score, budget)
    if budget.group:
        pools = ranked.unflatten(-1, (-1, budget.group))
    elif budget.scope == "column":
        pools = ranked.mT
    else:
        pools = ranked.flatten() if budget.scope == "tensor" else ranked
    keep = top_k(pools, budget.of(pools.shape[-1]))
    keep = keep.mT if budget.scope == "column" else keep.reshape(ranked.shape)
    return whole_units(keep, budget)


def in_units(score: Float[Tensor, "*rows n"], budget: Budget) -> Float[Tensor, "*units m"]:
    """The score of each unit, the sum of its own; halves are summed in float32. Refuses what cannot be ranked."""
    (h, w), cols = budget.unit, score.shape[-1]
    rows = score.shape[-2] if score.ndim > 1 else 1
    if rows % h or cols % w or (budget.group and (cols // w) % budget.group):
        budget.check(rows, cols)
    if score.ndim < 2 and budget.scope == "column":
        raise ValueError(f"budget '{budget}': scores of shape {tuple(score.shape)} have no columns; write 'per row'")
    score = score.detach()
    if budget.unit != (1, 1):
        wide = torch.promote_types(score.dtype, torch.float32)
        tall = (rows // h, h) if score.ndim > 1 else (1,)  # a single row has height 1, so its units do too
        score = score.reshape(*score.shape[:-2], *tall, cols // w, w).sum((-3, -1), dtype=wide)
    if score.numel() and score.amax().isnan():  # a maximum is NaN if anything is, and needs no second tensor
        raise ValueError("a score is NaN: a method must rank everything")
    return score


def whole_units(keep: Bool[Tensor, "*units m"], budget: Budget) -> Bool[Tensor, "*rows n"]:
    """What is kept of each unit is kept of all that it holds."""
    h, w = budget.unit
    keep = keep.repeat_interleave(w, -1) if w > 1 else keep
    return keep.repeat_interleave(h, -2) if h > 1 else keep
