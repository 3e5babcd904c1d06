"""SampleAttention: columns that hold most of what some sampled queries attend to."""

import torch

from fewer.attention import Keep, Key, Pattern, Query, reads
from fewer.core import Budget, Paper, method

from ._dots import dots

TITLE = "SampleAttention: Near-Lossless Acceleration of Long Context LLM Inference with Adaptive Structured Sparse Attention"


@method(Paper("2406.15486", TITLE, 2024, ledger=210))
class Stripes(Pattern):
    """Attend fully with every `every`-th query, and read for its neighbours the fewest blocks that hold the share `p` of it.

    The budget is the most. A block's mass is the sum over the sampled queries of their attention to its keys.

    Differs from the paper: each block of queries has samples and stripes of its own, so that chunks change nothing, where
    it has one set for a head; stripes are as wide as a block; its window is the block's own.

    >>> q, k = torch.ones(1, 1, 4, 1), torch.tensor([[[[0.0], [9.0], [0.0], [0.0]]]])
    >>> Stripes(every=4, rows=4, block=1).attend(q, k, budget("100%"))  # itself, and the one that all look at
    tensor([[[[False,  True, False,  True]]]])
    """

    phases = ("prefill",)

    p: float = 0.95  # "alpha = 0.95"
    every: int = 16  # "5 %"
    rows: int = 64
    block: int = 64

    def attend(self, q: Query, k: Key, budget: Budget) -> Keep:
        queries, keys = q.shape[2], k.shape[2]
        place = torch.arange(queries, device=q.device)
        some = place[((place + 1) % self.every == 0) | ((place + 1) % self.rows == 0) | (place == queries - 1)]
        future = torch.arange(keys, device=q.device) > some[:, None] + keys - queries
        a = dots(q[:, :, some].float(), k.float()).masked_fill(future, -torch.inf).softmax(-1)
        held = torch.nn.functional.pad(a, (0, -keys % self.block)).unflatten(-1, (-1, self.block)).sum(-1)
        mass = held.new_zeros(*q.shape[:2], -(-queries // self.rows), held.shape[-1])
        mass.index_add_(2, some // self.rows, held)
        return reads(mass.log(), q, k.shape[1:3], budget, self)
