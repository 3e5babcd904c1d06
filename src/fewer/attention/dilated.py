"""Dilated neighbourhood: every g-th block before."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method


@method(Paper("2209.15001", "Dilated Neighborhood Attention Transformer", 2022, ledger=261))
class Dilated(ByPlace):
    """Read every `gap`-th block before its own, from near to far; as many as the budget has room for.

    The paper alternates layers with gap 1 (a plain window) and more: two steps with different places.

    Differs from the paper: one dimension, causal, in blocks.

    >>> Dilated(gap=2).score_places(torch.tensor([3, 4]), 5, 1)
    tensor([[[[-inf, -1., -inf, -0., -inf],
              [-2., -inf, -1., -inf, -0.]]]])
    """

    gap: int = 2
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        far = apart(now, blocks).float()
        return torch.where((far % self.gap == 0) & (far >= 0), -far / self.gap, -torch.inf)[None, None]
