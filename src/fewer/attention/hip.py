"""HiP: a search down a tree of chunks, each known by one key."""

import torch

from fewer.attention import Keep, Key, Pattern, Query, allowed, newest, reads
from fewer.core import Budget, Paper, method
from fewer.kernels import top_k

from ._dots import best, dots

TITLE = "HiP Attention: Sparse Sub-Quadratic Attention with Hierarchical Attention Pruning"


@method(Paper("2406.09827", TITLE, 2024, ledger=200))
class Hip(Pattern):
    """Halve the chunks again and again, and go on each time with those whose middle key has the highest q.k / sqrt(d).

    A chunk of 2^l blocks is known by its middle key. Of each level's children as many stay as blocks may be read, and at
    the end that many blocks stand: O(log n) keys are looked at for each block that is read.

    Differs from the paper: chunks are aligned to powers of two, where it splits a block's past into equal ones; the chunks
    in which a query stands are always among those that stay. All middle keys are multiplied here (as many as there are
    blocks on a level); it says what the search finds, not what it saves.

    >>> k = torch.tensor([[[[1.0], [0.0], [7.0], [9.0], [2.0], [0.0], [0.0], [0.0]]]])
    >>> Hip(rows=1, block=1).attend(torch.ones(1, 1, 1, 1), k, budget("2"))  # itself, and down 0-3, 2-3, 3
    tensor([[[[False, False, False,  True, False, False, False,  True]]]])
    """

    steady = True  # "attention locality": a chunk's keys are alike

    rows: int = 64
    block: int = 16

    def attend(self, q: Query, k: Key, budget: Budget) -> Keep:
        keys, now = k.shape[2], newest(q, k.shape[2], self)[:, None]
        blocks = -(-keys // self.block)
        count = allowed(now[:, 0] + 1, budget, self)
        alive = None
        for level in reversed(range(max(1, (blocks - 1).bit_length() + 1))):
            size = 2**level
            start = torch.arange(0, blocks, size, device=q.device)
            middle = (start * self.block + size * self.block // 2).clamp(max=keys - 1)
            score = best(dots(q, k[:, :, middle]), self.rows)
            if alive is not None:
                score = score.masked_fill(~alive.repeat_interleave(2, -1)[..., : len(start)], -torch.inf)
            if level == 0:
                return reads(score, q, k.shape[1:3], budget, self)
            if q.shape[2] == 1:  # its group searches together
                score = (
                    score.softmax(-1)
                    .unflatten(1, (k.shape[1], -1))
                    .mean(2)
                    .repeat_interleave(q.shape[1] // k.shape[1], 1)
                )
            score = score.masked_fill(start == now // size * size, torch.inf).masked_fill(start > now, -torch.inf)
            alive = top_k(score, count.expand(score.shape[:-1])) & (score > -torch.inf)
        raise AssertionError("a tree has leaves")
