"""Mutual choice: the budget of a batch goes to the best pairs of token and latent; the underused are taught."""

import torch
from torch import Tensor

from fewer.core import Paper, method
from fewer.features import ByBatch


@method(
    Paper(
        "2411.02124",
        "Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders",
        2024,
        ledger=90,
    )
)
class MutualChoice(ByBatch):
    """Keep the best pairs of the whole batch, k a row; who speaks less than Zipf's law allows is taught as the dead are.

    Zipf's law, log share = a - s log rank, is fitted to the upper half of all latents by least squares. Underused is who
    lies below `part` of it, or is dead: the loss for underused latents (aux-zipf) is AuxK's with these in place of the dead.

    Differs from the paper: the choice is BatchTopK's, which appeared at the same time; how far below the law a latent must
    lie is ours.

    >>> MutualChoice().code(torch.tensor([[3.0, 2.0, 1.5], [1.0, -4.0, -5.0]]), budget("1"))  # two pairs
    tensor([[3., 2., 0.],
            [0., 0., 0.]])
    """

    part: float = 0.1

    def idle(self, silent: Tensor, share: Tensor, after: int) -> Tensor:
        best, order = share.clamp(min=1e-12).log().sort(descending=True, stable=True)
        rank = torch.arange(1, len(share) + 1, device=share.device, dtype=share.dtype).log()
        r, y = rank[: max(2, len(rank) // 2)], best[: max(2, len(rank) // 2)]
        slope = ((r - r.mean()) * (y - y.mean())).sum() / (r - r.mean()).square().sum().clamp(min=1e-12)
        law = y.mean() + slope * (rank - r.mean())
        under = torch.zeros_like(silent, dtype=torch.bool).scatter_(
            0, order, best < law + torch.tensor(self.part).log()
        )
        return (silent > after) | under
