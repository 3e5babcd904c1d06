"""Blockwise self-attention: each head reads one chunk, which its permutation names."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method


@method(Paper("1911.02972", "Blockwise Self-Attention for Long Document Understanding", 2019, ledger=290))
class PermutedChunks(ByPlace):
    """Of the text in `chunks` equal chunks, head h reads the one that stands h mod `chunks` before its own.

    The permutation of head h is pi(i) = (i - h) mod n: the identity for the first, shifted for the others.

    Differs from the paper: causal, so what would be read behind itself is replaced by the nearest; heads take the shifts in
    turn, where the paper gives more of them the identity.

    >>> PermutedChunks(chunks=2).score_places(torch.tensor([3]), 4, 2)
    tensor([[[[-inf, -inf, -1., -0.]],
    <BLANKLINE>
             [[-3., -2., -inf, -inf]]]])
    """

    chunks: int = 2  # "n = 2"
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        size = -(-blocks // self.chunks)
        head = torch.arange(heads, device=now.device)[:, None, None]
        named = (now[:, None] // size - head) % self.chunks
        same = torch.arange(blocks, device=now.device) // size == named
        return torch.where(same, -apart(now, blocks).float(), -torch.inf)[None]
