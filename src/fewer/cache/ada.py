"""AdaKV: heads share one ranking."""

import torch

from fewer.cache import Allocator, Counts, Score
from fewer.cache._plan import room
from fewer.core import Paper, method
from fewer.kernels import top_k

TITLE = "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference"


@method(Paper("2407.11550", TITLE, 2024, equation="Algorithms 1 and 2"))
class Ada(Allocator):
    """Rank the tokens of all heads of a layer together, once each head has kept `safe` of its equal budget.

    Differs from the paper: a part of each head's budget is safe, and not a mix of the two budgets, as in kvpress (0.2).

    Of 2 x 2 slots the first head's three best are among the four best, the second head keeps one.

    >>> score = torch.tensor([[[0.9, 0.8, 0.7, 0.1], [0.6, 0.3, 0.2, 0.1]]])
    >>> Ada().allocate(score, torch.tensor([[2, 2]]), layer=0, layers=1)
    tensor([[3, 1]])
    """

    safe: float = 0.2

    def allocate(self, score: Score, counts: Counts, layer: int, layers: int) -> Counts:
        there = room(score)
        total = counts.sum(-1).minimum(there.sum(-1))  # what a head cannot fill, others may
        counts = counts.minimum(there)
        safe = (counts * self.safe).long().clamp(min=1) if self.safe else counts * 0
        score = score.masked_fill(top_k(score, safe.minimum(there)), torch.inf)
        return top_k(score.flatten(1), total).unflatten(1, score.shape[1:]).sum(-1).minimum(there)
