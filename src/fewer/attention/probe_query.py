"""ActQKV's probe query: those of a block's queries that stand out speak for it."""

import torch

from fewer.attention import ByScore, Digest, Key, Query, Score, in_blocks
from fewer.core import Paper, method

from ._dots import dots, means

TITLE = "Activation-aware Probe-Query: Effective Key-Value Retrieval for Long-Context LLMs Inference"


@method(Paper("2502.13542", TITLE, 2025, ledger=236))
class ProbeQuery(ByScore):
    """Rank a block by p.mean(k) / sqrt(d), with p the mean of a block of queries weighted by how far each stands from their mean.

    The weight of query t is its activation bias |q_t - mean(q)|^2 over the sum of all.

    Differs from the paper: the bias is of a head's queries, where it takes all of a layer's; a block of keys is known
    by its mean; its cut-off over layers in decoding is a matter of budgets.

    >>> m = ProbeQuery(rows=3, block=1)
    >>> q = torch.tensor([[[[0.0], [0.0], [3.0]]]])  # about 1: 1, 1 and 4; p = 12 / 6
    >>> m.score(q, m.digest(torch.tensor([[[[1.0], [5.0], [2.0]]]])))
    tensor([[[[ 2., 10.,  4.]]]])
    """

    rows: int = 64
    block: int = 64

    def digest(self, k: Key) -> Digest:
        return (means(k, self.block),)

    def score(self, q: Query, digest: Digest) -> Score:
        x = in_blocks(q.float(), self.rows)
        real = in_blocks(torch.ones_like(q[:1, :1, :, :1].float()), self.rows)
        many = real.sum(3, keepdim=True)
        bias = (x - x.sum(3, keepdim=True) / many).square().sum(-1, keepdim=True) * real
        total = bias.sum(3, keepdim=True)
        weight = torch.where(total > 0, bias / total.clamp(min=torch.finfo(x.dtype).tiny), real / many)
        return dots((weight * x).sum(3).to(q.dtype), digest[0])
