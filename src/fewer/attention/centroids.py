"""Centroids: tokens are ranked by the centre of their cluster."""

import torch

from fewer.attention import Keep, Key, Pattern, Query, reads
from fewer.core import Budget, Paper, method

from ._dots import best, dots

TITLE = "Sparse VideoGen2: Accelerate Video Generation with Sparse Attention via Semantic-Aware Permutation"


@method(Paper("2505.18875", TITLE, 2025, ledger=5))
class Centroids(Pattern):
    """Cluster the keys by k-means, and read the clusters whose centre has the highest q.c / sqrt(d), as far as the budget goes.

    There is one cluster for `size` keys; k-means starts from keys that stand at equal distances, and takes `turns` turns. A key
    has its centre's score; within a cluster, earlier keys are read first. So do SVG2 (5), Squeezed Attention (289)
    and, with centres that are learnt, Routing Transformers (176).

    Differs from the papers: queries are not clustered, a block of neighbours asks together; what is read lies scattered
    (blocks of one key), where SVG2 permutes tokens so that clusters are blocks. All keys are clustered, later ones
    too, at each call: it says what such an index finds, not what it saves.

    >>> k = torch.tensor([[[[1.0], [9.0], [2.0], [8.0]]]])
    >>> m = Centroids(size=2, rows=1)
    >>> m.attend(torch.ones(1, 1, 1, 1), k, budget("2"))  # itself (8), and of its cluster 9
    tensor([[[[False,  True, False,  True]]]])
    """

    size: int = 20  # "5 % of the keys"
    turns: int = 5
    rows: int = 16
    block: int = 1

    def attend(self, q: Query, k: Key, budget: Budget) -> Keep:
        x = k.double()
        many = -(-k.shape[2] // self.size)
        start = (torch.arange(many, device=k.device) + 0.5) / many * k.shape[2]
        centre = x[:, :, start.long()]
        for _ in range(self.turns):
            member = torch.nn.functional.one_hot(torch.cdist(x, centre).argmin(-1), many).double()
            total = member.sum(2)[..., None]
            centre = torch.where(total > 0, member.mT @ x / total.clamp(min=1), centre)
        mine = torch.cdist(x, centre).argmin(-1)
        each = best(dots(q, centre), self.rows)
        at = mine.repeat_interleave(q.shape[1] // k.shape[1], 1)[:, :, None].expand(-1, -1, each.shape[2], -1)
        score = each.gather(-1, at)
        tokens = -(-k.shape[2] // self.block)
        score = torch.nn.functional.pad(score, (0, tokens * self.block - k.shape[2]), value=-torch.inf)
        return reads(score.unflatten(-1, (tokens, -1)).amax(-1), q, k.shape[1:3], budget, self)
