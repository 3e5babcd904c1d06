"""Edges: a graph says which tokens read one another."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method


@method(Paper("2303.06147", "Exphormer: Sparse Transformers for Graphs", 2023, ledger=213))
class Edges(ByPlace):
    """Read the blocks that an edge of the graph leads to: those with most edges first, then the nearest.

    `edges` are pairs of tokens, each good in both directions, the later reading the earlier. With
    `union(parts="edges(...) + big_bird")` there are Exphormer's expander and global nodes as well.

    Differs from the paper: causal, in blocks; what the pattern leaves of the budget is spent on the nearest.

    >>> Edges(edges=((0, 5), (6, 2), (7, 3)), block=2).score_places(torch.tensor([3]), 4, 1)  # two lead from 67 to 23
    tensor([[[[-inf, 2., -inf, 0.]]]])
    """

    edges: tuple[tuple[int, int], ...] = ()
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        ends = torch.tensor(self.edges, dtype=torch.long, device=now.device).view(-1, 2) // self.block
        ends = ends[(ends < blocks).all(1)]
        count = torch.zeros(blocks, blocks, device=now.device)
        count.index_put_((ends.amax(1), ends.amin(1)), torch.ones((), device=now.device), accumulate=True)
        far = apart(now, blocks)
        count = count[now]
        near = -far / (blocks + 1)  # below one: it decides among equals
        return torch.where(far == 0, 0.0, torch.where(count > 0, count + near.ceil(), -torch.inf))[None, None]
