"""LServe: large pages, each known by the boxes of smaller ones within."""

import torch

from fewer.attention import ByScore, Digest, Key, Query, Score, in_blocks
from fewer.core import Paper, method

from ._dots import best

TITLE = "LServe: Efficient Long-sequence LLM Serving with Unified Sparse Attention"


@method(Paper("2502.14866", TITLE, 2025, ledger=211))
class Lserve(ByScore):
    """Rank a page by the highest q.k that the box of any of its parts of `part` keys allows.

    Large pages are read fast, small boxes are tight: the bound is never above that of one box round the whole page.

    Differs from the paper: this is how heads that retrieve read; that half of the heads stream is `by_head`, that a choice is
    used for several steps is `reuse`.

    >>> k = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    >>> m, whole = Lserve(block=2, part=1), Lserve(block=2, part=2)
    >>> q = torch.tensor([[[[1.0, 1.0]]]])
    >>> m.score(q, m.digest(k)) * 2**0.5, whole.score(q, whole.digest(k)) * 2**0.5
    (tensor([[[[1.0000]]]]), tensor([[[[2.0000]]]]))
    """

    phases = ("decode",)

    rows: int = 1
    block: int = 64  # "physical pages"
    part: int = 16  # "logical pages"

    def digest(self, k: Key) -> Digest:
        if self.block % self.part:
            raise ValueError(f"{self.name}: a page of {self.block} keys does not divide into parts of {self.part}")
        short = -k.shape[2] % self.block
        filled = torch.cat([k, k[:, :, -1:].expand(-1, -1, short, -1)], 2)  # by its last: no box grows
        parts = in_blocks(filled, self.block).unflatten(3, (-1, self.part))
        return parts.amin(4), parts.amax(4)

    def score(self, q: Query, digest: Digest) -> Score:
        low, high = (d.to(q.dtype).flatten(2, 3) for d in digest)
        grouped = q.unflatten(1, (low.shape[1], -1)).flatten(2, 3)
        bound = grouped.clamp(min=0) @ high.mT + grouped.clamp(max=0) @ low.mT
        bound = bound.unflatten(-1, (-1, self.block // self.part)).amax(-1) * q.shape[-1] ** -0.5
        return best(bound.unflatten(2, (-1, q.shape[2])).flatten(1, 2), self.rows)
