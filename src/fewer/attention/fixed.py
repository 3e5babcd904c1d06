"""Sparse Transformer, fixed: its own chunk, and what closes each chunk before."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method


@method(Paper("1904.10509", "Generating Long Sequences with Sparse Transformers", 2019, ledger=71))
class Fixed(ByPlace):
    """Read its own chunk of `chunk` blocks and the last `summary` of every chunk before, both from near to far and in turn.

    Block j of row i is of the pattern if floor(j / l) = floor(i / l) or j mod l >= l - c (section 4.2).

    Differs from the paper: in blocks, where it counts tokens; all heads read the same closing blocks.

    >>> Fixed(chunk=2).score_places(torch.tensor([4]), 5, 1)  # chunks 01 23 4
    tensor([[[[-inf, -2., -inf, -1., -0.]]]])
    """

    chunk: int = 8
    summary: int = 1
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        j = torch.arange(blocks, device=now.device)
        before = now[:, None] // self.chunk - j // self.chunk  # in chunks
        closing = before * self.summary - (j % self.chunk - (self.chunk - self.summary))
        rank = torch.where(j % self.chunk >= self.chunk - self.summary, closing, torch.inf)
        return -torch.where(before == 0, apart(now, blocks), rank).float()[None, None]
