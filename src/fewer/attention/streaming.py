"""StreamingLLM: the first tokens and the newest."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method


@method(Paper("2309.17453", "Efficient Streaming Language Models with Attention Sinks", 2023))
class Streaming(ByPlace):
    """Read the blocks that hold the first `sinks` tokens, then the nearest: the window is what the budget leaves.

    With `sinks=0` it is a plain sliding window.

    Differs from the paper: whole blocks; places stay those of the text and are not counted anew within the cache.

    >>> Streaming(sinks=4, block=4).score_places(torch.tensor([3]), 4, 1)
    tensor([[[[ 1., -2., -1., -0.]]]])
    """

    sinks: int = 4  # "keeping 4 initial tokens"
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        near = -apart(now, blocks).float()
        first = torch.arange(blocks, device=now.device) < -(-self.sinks // self.block)
        return torch.where(first, 1.0, near)[None, None]
