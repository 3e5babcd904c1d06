"""Feature choice: each latent chooses its inputs."""

import torch
from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByBatch, Keep, Own, Pre, total
from fewer.select import select


@method(
    Paper(
        "2411.02124",
        "Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders",
        2024,
        ledger=90,
    )
)
class FeatureChoice(ByBatch):
    """Each latent speaks for the inputs where it is largest, for the same number of them; so none is dead.

    Of a batch's `rows * k` places each latent gets the same number, rounded down; those left over go to the latents whose
    next best is largest. What comes alone must be above the latent's own threshold, fitted on held-out data.

    Differs from the paper: all latents get the same number, where it also tries numbers that follow Zipf's law.

    >>> FeatureChoice().code(torch.tensor([[3.0, 2.0], [1.0, 4.0], [5.0, 6.0]]), budget("1"))  # 3 places: 1 each, 1 left
    tensor([[0., 0.],
            [0., 4.],
            [5., 6.]])
    """

    def keep(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Keep:
        each, left = divmod(total(budget, pre), pre.shape[1])
        keep = select(pre, Budget(each, scope="column")) if each else torch.zeros_like(pre, dtype=torch.bool)
        if left and each < len(pre):
            after = select(pre, Budget(each + 1, scope="column")) & ~keep  # of each latent, the next best
            keep = keep | (after & select(pre.masked_fill(~after, -float("inf")), budget.with_count(left)))
        return keep

    def settle(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> dict[str, Tensor]:
        return {"threshold": pre.relu().masked_fill(self.keep(pre, budget, own), 0).amax(0)}
