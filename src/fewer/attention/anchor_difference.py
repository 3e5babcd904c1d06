"""AnchorAttention: whatever comes near the best that is found where the best is usually found."""

import torch

from fewer.attention import Keep, Key, Pattern, Query, in_blocks, newest, reads
from fewer.core import Budget, Paper, method

from ._dots import dots, means

TITLE = "AnchorAttention: Difference-Aware Sparse Attention with Stripe Granularity"


@method(Paper("2505.23520", TITLE, 2025, ledger=421))
class AnchorDifference(Pattern):
    """Read the blocks with a key whose mean(q).k / sqrt(d) is at most `within` below the anchor.

    The anchor is the mean over a block's queries of the highest q.k / sqrt(d) among the first block of keys and their own. The
    budget is the most; the highest come first.

    Differs from the paper: blocks of `block` keys, where it reads single ones (`block=1`); anchors are of one block of
    queries, where several share them.

    >>> q, k = torch.ones(1, 1, 4, 1), torch.tensor([[[[5.0], [0.0], [4.0], [3.0]]]])
    >>> AnchorDifference(within=2.0, rows=1, block=1).attend(q, k, budget("100%"))[0, 0, 3]  # 5 is the anchor, 3 itself
    tensor([ True, False,  True,  True])
    """

    phases = ("prefill",)

    within: float = 12.0  # "theta = 12"
    rows: int = 64
    block: int = 64

    def attend(self, q: Query, k: Key, budget: Budget) -> Keep:
        pooled = dots(means(q.float(), self.rows), k.float())
        short = -k.shape[2] % self.block
        score = torch.nn.functional.pad(pooled, (0, short), value=-torch.inf).unflatten(-1, (-1, self.block)).amax(-1)
        near = score >= self._anchor(q.float(), k.float()) - self.within
        own = newest(q, k.shape[2], self)[:, None] == torch.arange(score.shape[-1], device=q.device)
        keep = reads(score, q, k.shape[1:3], budget, self)
        if keep.shape[1] < near.shape[1]:  # one query: its group reads together
            near = near.unflatten(1, (keep.shape[1], -1)).any(2)
        return keep & (near | own)

    def _anchor(self, q: Query, k: Key) -> torch.Tensor:
        queries, keys, now = q.shape[2], k.shape[2], newest(q, k.shape[2], self)
        place = torch.arange(queries, device=q.device)[:, None] + keys - queries
        at = torch.arange(min(self.block, keys), device=q.device)
        first = dots(q, k[:, :, : self.block]).masked_fill(at > place, -torch.inf).amax(-1)
        group = q.shape[1] // k.shape[1]
        own = in_blocks(k, self.block)[:, :, now].repeat_interleave(group, 1)  # of each block of queries
        said = in_blocks(q, self.rows) @ own.mT * q.shape[-1] ** -0.5
        at = now[:, None, None] * self.block + torch.arange(self.block, device=q.device)
        when = in_blocks(place[None, None].float(), self.rows)[0, 0].long()
        said = said.masked_fill((at > when) | (at >= keys), -torch.inf).amax(-1).flatten(2)[..., :queries]
        return means(torch.maximum(first, said)[..., None], self.rows)
