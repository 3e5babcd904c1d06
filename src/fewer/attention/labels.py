"""Labels: who is of one row, column, section or branch reads one another."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method


@method(Paper("2109.04312", "MATE: Multi-view Attention for Table Transformer Efficiency", 2021, ledger=216))
class Labels(ByPlace):
    """Read the blocks that hold a token of a label that its own has, or of label 0, which all read; from near to far.

    `labels` holds one label for each token, from the first on; tokens beyond have the last one's. Several such tuples are
    dealt to heads in turn: a table's rows and columns (MATE), a document's sections (HDT, 2407.08330), branches behind a
    shared prefix with label 0 (2410.20305).

    Differs from the papers: whole blocks, and what the pattern leaves of the budget is spent on the nearest. So it is no
    wall: branches that must not see each other need a mask.

    >>> m = Labels(labels=((0, 0, 1, 1, 2, 2),), block=2)  # a prefix and two branches
    >>> m.score_places(torch.tensor([2]), 3, 1)
    tensor([[[[-2., -inf, -0.]]]])
    """

    labels: tuple[tuple[int, ...], ...] = ()
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        near = -apart(now, blocks).float()
        if not self.labels:
            return near[None, None]
        same = torch.stack([self._same(row, blocks).to(now.device)[now] for row in self.labels])
        deal = torch.arange(heads, device=now.device) % len(self.labels)
        return torch.where(same, near, -torch.inf)[deal][None]

    def _same(self, row: tuple[int, ...], blocks: int) -> Tensor:
        """Which blocks share a label, or hold 0."""
        said = torch.tensor(row)[: blocks * self.block]
        said = torch.cat([said, said[-1:].expand(blocks * self.block - len(said))])
        names, which = said.unique(return_inverse=True)
        has = torch.zeros(blocks, len(names)).index_put_(
            (torch.arange(len(said)) // self.block, which), torch.ones(()), accumulate=True
        )
        return (has @ has.T + has[:, names == 0].sum(1)) > 0
