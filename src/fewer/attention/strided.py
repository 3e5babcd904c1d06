"""Sparse Transformer, strided: the last few and each l-th before."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method


@method(Paper("1904.10509", "Generating Long Sequences with Sparse Transformers", 2019, ledger=71))
class Strided(ByPlace):
    """Read the `stride` nearest blocks and each `stride`-th before them, both from near to far and in turn.

    Block j of row i is of the pattern if i - j < l or (i - j) mod l = 0 (section 4.2). Its rank is i - j in the window, and
    (i - j) / l + 1/2 in the column, so that a short budget cuts both.

    Differs from the paper: in blocks, where it counts tokens; all heads read both parts ("merged"), as its factorised heads
    can be had with `by_head`.

    >>> Strided(stride=2).score_places(torch.tensor([4]), 5, 1)  # 1 and 3 are two apart or more, and no multiple
    tensor([[[[-2.5000,    -inf, -1.5000, -1.0000, -0.0000]]]])
    """

    stride: int = 8
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        far = apart(now, blocks).float()
        near = torch.where(far < self.stride, far, torch.inf)
        column = torch.where(far % self.stride == 0, far / self.stride + 0.5, torch.inf)
        return -torch.minimum(near, column)[None, None]
