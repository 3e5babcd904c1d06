"""Hierarchical attention: its own section, and the heads of sections at every level above."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method


@method(Paper("2407.08330", "HDT: Hierarchical Document Transformer", 2024, ledger=241))
class Hierarchy(ByPlace):
    """Read its siblings, its parent's siblings, their parent's, in a tree of `fanout` children a node; each level from near.

    Level l has a node at each multiple of f^l. Row i reads j of level l (f^l divides j) if both lie under the same node of
    the next level: floor(j / f^(l+1)) = floor(i / f^(l+1)). That is about (f - 1) log_f n blocks of n.

    Differs from the paper: the tree is regular, where it is the document's (sections are `labels`); the first block of a
    section stands for its anchor token.

    >>> Hierarchy(fanout=2).score_places(torch.tensor([7]), 8, 1).isfinite().int()  # 0, 4 above; 6 beside 7, 4 beside 6
    tensor([[[[1, 0, 0, 0, 1, 0, 1, 1]]]], dtype=torch.int32)
    """

    fanout: int = 4
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        far, j = apart(now, blocks), torch.arange(blocks, device=now.device)
        score = torch.full(far.shape, -torch.inf, device=now.device)
        size, before = 1, 0  # how many the levels below may read
        while size < max(blocks, 2):
            siblings = (j % size == 0) & (j // (size * self.fanout) == now[:, None] // (size * self.fanout))
            score = torch.maximum(score, torch.where(siblings, -(before + far // size).float(), -torch.inf))
            size, before = size * self.fanout, before + self.fanout
        return score[None, None]
