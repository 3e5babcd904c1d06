"""What several allocators share: a model's slots divided by weights known before."""

from collections.abc import Sequence

import torch

from fewer.core import Budget
from fewer.select.allocate import divide

from ._protocol import Counts, Score


def room(score: Score) -> Counts:
    """How many slots of each head hold a token."""
    return (score > -torch.inf).sum(-1)


def planned(score: Score, counts: Counts, weights: Sequence[Sequence[float | int]], layer: int) -> Counts:
    """This layer's counts, if all the model's slots are divided as `weights[layer][head]`, none more than there is.

    >>> planned(torch.zeros(1, 2, 8), torch.tensor([[4, 4]]), [[3.0, 1.0], [2.0, 2.0]], 0)
    tensor([[6, 2]])
    """
    layers, heads = len(weights), len(weights[0])
    out = []
    for there, each in zip(room(score).tolist(), counts.tolist(), strict=True):
        size = [max(there)] * (layers * heads)  # of other layers it is not known
        size[layer * heads : (layer + 1) * heads] = there
        size = [max(1, n) for n in size]
        total = max(1, min(layers * sum(each), sum(size)))
        flat = [max(float(w), 1e-9) / n for w, n in zip((w for row in weights for w in row), size, strict=True)]
        every = divide(Budget(total, scope="model"), size, flat)
        mine = every[layer * heads : (layer + 1) * heads]
        out.append([min(n, t) for n, t in zip(mine, there, strict=True)])
    return torch.tensor(out, device=counts.device, dtype=counts.dtype)


def check_plan(name: str, plan: Sequence[Sequence[object]], layers: int, heads: int) -> None:
    """ValueError if a plan was made for another model."""
    if len(plan) != layers or any(len(row) != heads for row in plan):
        raise ValueError(
            f"{name}: a plan of {len(plan)} layers x {len(plan[0])} heads; the model has {layers} x {heads}"
        )
