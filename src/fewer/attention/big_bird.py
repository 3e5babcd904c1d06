"""BigBird: a window, global tokens, and some at random."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method

from ._drawn import drawn


@method(Paper("2007.14062", "Big Bird: Transformers for Longer Sequences", 2020, ledger=231))
class BigBird(ByPlace):
    """Read the `window` nearest blocks, the first `first` ones, and at random what the budget leaves.

    Chance depends on seed, head and place: a row reads the same when it is decoded as in the whole.

    Differs from the paper: causal; nothing reads everything, since a later token cannot be read. Its window of three has
    one on each side.

    >>> score = BigBird(window=2, first=1).score_places(torch.tensor([4]), 5, 1)
    >>> score.gt(1), score[..., 1:3].lt(1)
    (tensor([[[[ True, False, False,  True,  True]]]]), tensor([[[[True, True]]]]))
    """

    window: int = 3  # "w = 3"
    first: int = 2  # "g = 2"
    seed: int = 0
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        far = apart(now, blocks)
        near = (self.window + 1 - far) * ((far >= 0) & (far < self.window))
        first = (torch.arange(blocks, device=now.device) < self.first).long()
        return drawn(self.seed, now, blocks, heads) + 1.5 * torch.maximum(near, first)
