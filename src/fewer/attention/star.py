"""Star attention: each part of the context by itself, behind the first."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method


@method(Paper("2411.17116", "Star Attention: Efficient LLM Inference over Long Sequences", 2024, ledger=292))
class Star(ByPlace):
    """Read one's own part of the context, from near to far, and in turn with it the first part, the anchor, from the front.

    Parts are of `part` tokens. No part waits for another, so each can be read on a host of its own; queries that come later read all of them,
    and the hosts' answers merge by their log-sum-exps (`cache/split`).

    Differs from the paper: the anchor's tokens keep their places, there each part sees it right before itself; a budget is met, so
    that parts that need less of it read on beyond them.

    Parts of two blocks: the sixth block reads its part, and the first.

    >>> Star(part=32, block=16).score_places(torch.tensor([5]), 6, 1)
    tensor([[[[-1., -3., -inf, -inf, -2., -0.]]]])
    """

    phases = ("prefill",)

    part: int = 4096
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        each, j = max(1, self.part // self.block), torch.arange(blocks, device=now.device)
        own = j // each == (now // each)[:, None]
        anchor = torch.where(j < each, -2.0 * j - 1, -torch.inf)
        return torch.where(own, -2.0 * apart(now, blocks), anchor)[None, None]
