"""Rules beside the budget: top-p, a threshold, a number for each row; and the meeting of two budgets."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fewer.core import Budget

from ._select import select


def top_p(prob: Float[Tensor, "*rows n"], p: float | int) -> Bool[Tensor, "*rows n"]:
    """The fewest of each row whose mass reaches the share `p` of the row's mass, at least one; ties to the lower index.

    Masses are added in float64, largest first (nucleus sampling, Holtzman et al. 2020, 1904.09751, eq. 2).

    ValueError: `p` outside (0, 1], a negative or NaN probability.

    >>> top_p(torch.tensor([0.1, 0.5, 0.25, 0.15]), 0.7).int()
    tensor([0, 1, 1, 0], dtype=torch.int32)
    """
    if not 0 < p <= 1:
        raise ValueError(f"p is a share of the mass, above 0 and at most 1, not {p}")
    if not (prob >= 0).all():
        raise ValueError("a probability is negative or NaN: top_p takes what softmax gives")
    best, order = prob.detach().double().sort(descending=True, stable=True)
    reached = best.cumsum(-1)
    short = reached < p * reached[..., -1:]
    first = torch.cat([torch.ones_like(short[..., :1]), short[..., :-1]], dim=-1)  # the one that reaches p stays too
    return torch.zeros_like(first).scatter_(-1, order, first)


def threshold(score: Float[Tensor, "*rows n"], above: float | int | Float[Tensor, "..."]) -> Bool[Tensor, "*rows n"]:
    """Keep what is strictly above a threshold, one for all or one that broadcasts; how many that is, the data say.

    >>> threshold(torch.tensor([1.0, 2.0, 3.0]), 2.0)
    tensor([False, False,  True])
    """
    if score.isnan().any():
        raise ValueError("a score is NaN: a method must rank everything")
    return score.detach() > above


def top_each(score: Float[Tensor, "rows n"], counts: Int[Tensor, " rows"]) -> Bool[Tensor, "rows n"]:
    """Keep the highest `counts[r]` of row r, each row its own number; ties go to the lower index.

    >>> top_each(torch.tensor([[1.0, 5.0, 2.0], [4.0, 4.0, 3.0]]), torch.tensor([2, 1])).int()
    tensor([[0, 1, 1],
            [1, 0, 0]], dtype=torch.int32)
    """
    if score.isnan().any():
        raise ValueError("a score is NaN: a method must rank everything")
    order = score.detach().sort(dim=-1, descending=True, stable=True).indices
    best = torch.arange(score.shape[-1], device=score.device) < counts[:, None]
    return torch.zeros_like(best).scatter_(-1, order, best)


def mutual(score: Float[Tensor, "*lead rows cols"], rows: Budget, cols: Budget) -> Bool[Tensor, "*lead rows cols"]:
    """Keep where both sides choose each other: within the best of its row and within the best of its column.

    With tokens in rows and experts in columns, `select(logits, budget("2"))` is token choice (Shazeer et al. 2017),
    `select(logits, budget("64 per column"))` is expert choice (Zhou et al. 2022, 2202.09368), and this keeps what
    the two have in common, so that neither side goes above its budget.

    >>> from fewer.core.budget import budget
    >>> mutual(torch.tensor([[5.0, 4.0], [3.0, 9.0], [1.0, 2.0]]), budget("1"), budget("1 per column")).int()
    tensor([[1, 0],
            [0, 1],
            [0, 0]], dtype=torch.int32)
    """
    if rows.scope != "row" or cols.scope != "column":
        raise ValueError(f"mutual choice takes a budget per row and one per column, not '{rows}' and '{cols}'")
    return select(score, rows) & select(score, cols)
