"""S2-Attention: a window, and a shard of the rest that is each head's own."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method

TITLE = "Efficient LLM Training and Serving with Heterogeneous Context Sharding among Attention Heads"


@method(Paper("2407.17678", TITLE, 2024, ledger=286))
class Shards(ByPlace):
    """Read the `window` nearest blocks and, in turn with them, from near to far each `stride`-th; heads start elsewhere.

    Head h reads j with j mod `stride` = h mod `stride`, so `stride` heads together read everything, and beyond the
    window a head needs only its own blocks to be kept.

    Differs from the paper: a group of heads shares its shard, since it shares its keys.

    >>> Shards(window=1, stride=2).score_places(torch.tensor([4]), 5, 2)
    tensor([[[[-2., -inf, -1., -inf, -0.]],
    <BLANKLINE>
             [[-inf, -1., -inf, -0., -0.]]]])
    """

    window: int = 4
    stride: int = 4
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        far, j = apart(now, blocks), torch.arange(blocks, device=now.device)
        head = torch.arange(heads, device=now.device)[:, None, None]
        mine = torch.where(j % self.stride == head % self.stride, far // self.stride, torch.inf)
        return -torch.where(far < self.window, torch.minimum(far, mine), mine)[None].float()
