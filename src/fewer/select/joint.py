"""One budget over several tensors: `per layer` and `per model`."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.core import Budget
from fewer.kernels.top_k import top_k

from ._select import in_units, select, whole_units


def select_jointly(scores: Sequence[Float[Tensor, "..."]], budget: Budget) -> list[Bool[Tensor, "..."]]:
    """Rank the units of all tensors together and keep the best, exactly `budget.of(how many units there are)`.

    Ties go to the earlier tensor, then to the lower index. A tensor may keep nothing: scores that are to be compared
    must be comparable. A budget that is not joint is met by each tensor alone.

    >>> from fewer.core.budget import budget
    >>> a, b = torch.tensor([[1.0, 4.0]]), torch.tensor([[3.0, 2.0, 4.0, 1.0]])
    >>> [keep.int().tolist() for keep in select_jointly([a, b], budget("50% per model"))]
    [[[0, 1]], [[1, 0, 1, 0]]]
    """
    if not budget.joint:
        return [select(score, budget) for score in scores]
    if not scores:
        return []
    ranked = [in_units(score, budget) for score in scores]
    every = torch.cat([score.flatten().to(ranked[0].device) for score in ranked])
    parts = top_k(every, budget.of(len(every))).split([score.numel() for score in ranked])
    return [
        whole_units(keep.to(score.device).reshape(score.shape), budget)
        for keep, score in zip(parts, ranked, strict=True)
    ]


def joint_counts(scores: Sequence[Float[Tensor, "..."]], budget: Budget) -> list[int]:
    """How many units of each tensor a joint selection keeps: what `budget.with_count` takes, for one tensor at a time.

    >>> from fewer.core.budget import budget
    >>> joint_counts([torch.tensor([[1.0, 4.0]]), torch.tensor([[3.0, 2.0, 4.0, 1.0]])], budget("50% per model"))
    [1, 2]
    """
    size = budget.unit[0] * budget.unit[1]
    return [int(keep.sum()) // size for keep in select_jointly(scores, budget)]
