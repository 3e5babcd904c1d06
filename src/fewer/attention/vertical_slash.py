"""MInference's vertical and slash lines: the last queries show which keys and which distances matter."""

import torch

from fewer.attention import Keep, Key, Pattern, Query, Score, reads
from fewer.core import Budget, Paper, method

from ._dots import dots

TITLE = "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention"


@method(Paper("2407.02490", TITLE, 2024, ledger=207))
class VerticalSlash(Pattern):
    """Read the blocks that columns and diagonals cross which hold most of the `last` queries' attention.

    With A the attention of the last queries: v_j = sum_t A[t, j] for a key, s_d = sum_t A[t, t - d] for a distance. A block of
    keys J has for a block of queries I the score sum_(j in J) v_j + mean_(t in I) sum_(j in J) s_(t - j).

    Differs from the paper: it takes so many columns and so many diagonals, as a search per head found; here the sum ranks
    blocks under one budget, and blocks are read whole. Last are the last of each call, so chunks look for themselves, as in
    Qwen2.5-1M (2501.15383).

    >>> q = torch.zeros(1, 1, 4, 1)  # the last attends to all four alike: v = s = 1/4 each
    >>> m = VerticalSlash(last=1, rows=1, block=1)
    >>> m.score(q, torch.zeros(1, 1, 4, 1))[0, 0, 2:]  # from the third, distances 2 1 0 and none
    tensor([[0.5000, 0.5000, 0.5000, 0.2500],
            [0.5000, 0.5000, 0.5000, 0.5000]])
    """

    phases = ("prefill",)
    steady = True

    last: int = 64
    rows: int = 64
    block: int = 64

    def attend(self, q: Query, k: Key, budget: Budget) -> Keep:
        return reads(self.score(q, k), q, k.shape[1:3], budget, self)

    def score(self, q: Query, k: Key) -> Score:
        keys, some = k.shape[2], q[:, :, -self.last :]
        now = torch.arange(keys - some.shape[2], keys, device=q.device)[:, None]
        far = now - torch.arange(keys, device=q.device)
        a = dots(some.float(), k.float()).masked_fill(far < 0, -torch.inf).softmax(-1).double()
        column = torch.nn.functional.pad(a.sum(2), (0, -keys % self.block)).unflatten(-1, (-1, self.block)).sum(-1)
        at = far.clamp(min=0).expand(a.shape).flatten(2)
        slash = a.new_zeros(*a.shape[:2], keys).scatter_add(-1, at, a.flatten(2))
        return (column[:, :, None] + self._along(slash, q.shape[2], keys)).float()

    def _along(self, slash: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
        """The mean over a block's queries of what a block of keys holds of their diagonals, by sums of sums."""
        once = torch.nn.functional.pad(slash.cumsum(-1), (1, 0))  # of distances below d
        twice = torch.nn.functional.pad(once.cumsum(-1), (1, 0))  # of these, below d
        start = torch.arange(0, queries, self.rows, device=slash.device)
        end = (start + self.rows).clamp(max=queries)
        first, past = (t[:, None] + keys - queries for t in (start, end))  # places, and the one behind

        def upto(j: torch.Tensor) -> torch.Tensor:  # the sum over the block's queries t of once[t - j + 1]
            a, b = ((t - j + 1).clamp(0, keys + 1) for t in (first, past))
            return twice[..., b] - twice[..., a]

        left = torch.arange(0, keys, self.block, device=slash.device)
        return (upto(left) - upto((left + self.block).clamp(max=keys))) / (end - start)[:, None]
