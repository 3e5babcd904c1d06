"""MagicPIG: tokens drawn by their hashes, weighed by how likely that was."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._dots import best


@method(Paper("2410.16179", "MagicPIG: LSH Sampling for Efficient LLM Generation", 2024, ledger=323))
class MagicPig(ByScore):
    """Read the tokens that share all `bits` signs of random projections with the query in two tables at least, each by the weight 1 / p.

    p = 1 - (1 - c)^L - L c (1 - c)^(L - 1) is the probability of that among L tables, c = (1 - a / pi)^bits that of meeting in one at the angle a.
    So the sums over what is read are unbiased ones of those over all; the softmax is their ratio. Keys are hashed about their mean, which
    `fit(q, k)` finds; before, about zero. Each head draws for itself; a group reads what any of its heads drew.

    Differs from the paper: the budget is the most that is read, by the number of tables they share; where more were drawn, the estimate is
    biased. Only the query's own token always counts, not a window and sinks besides.

    >>> m = MagicPig(bits=1, tables=200)
    >>> k = torch.tensor([[[[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]])
    >>> m.score(torch.tensor([[[[1.0, 0.0]]]]), m.digest(k)).flatten()  # angles 0, pi / 2 and pi: all, half, none
    tensor([200., 106.,   0.])
    """

    phases = ("decode",)
    weighs = True
    fits = "centre"

    bits: int = 10  # "K = 10, L = 150"
    tables: int = 150
    centre: tuple[tuple[float, ...], ...] = ()
    seed: int = 0
    rows: int = 1
    block: int = 1

    def fit(self, q: Query, k: Key) -> "MagicPig":
        return replace(self, centre=tuple(map(tuple, k.double().mean((0, 2)).tolist())))

    def digest(self, k: Key) -> Digest:
        return (self._hash(self._about(k)),)

    def score(self, q: Query, digest: Digest) -> Score:
        (codes,) = digest
        kv_heads, keys, _ = codes.shape[1:]
        mine = self._hash(q).unflatten(1, (kv_heads, -1)).flatten(2, 3)
        met = torch.zeros(*mine.shape[:3], keys, dtype=torch.int32, device=q.device)
        for table in range(self.tables):  # never [queries, keys, tables]
            met += mine[..., table, None] == codes[:, :, None, :, table]
        return best(met.to(q.dtype).unflatten(2, (-1, q.shape[2])).flatten(1, 2), self.rows)

    def weigh(self, q: Query, k: Key) -> Float[Tensor, "batch heads keys"]:
        k = self._about(k)
        met = self.score(q, (self._hash(k),))[:, :, 0]
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        angle = torch.cosine_similarity(q.double(), keys.double(), dim=-1).clamp(-1, 1).acos()
        once = (1 - angle / math.pi) ** self.bits
        never = (1 - once) ** self.tables
        p = 1 - never - self.tables * once * (1 - once) ** (self.tables - 1)
        return torch.where(met >= 2, -p.clamp(min=1e-12).log(), -torch.inf).to(q.dtype)

    def _about(self, k: Key) -> Key:
        """Keys about their mean."""
        return k - torch.tensor(self.centre, dtype=k.dtype, device=k.device)[:, None] if self.centre else k

    def _hash(self, x: Key) -> Tensor:
        make = torch.Generator().manual_seed(self.seed)
        along = torch.randn(x.shape[-1], self.tables * self.bits, generator=make).to(x)
        signs = (x @ along > 0).unflatten(-1, (self.tables, self.bits)).long()
        return (signs << torch.arange(self.bits, device=x.device)).sum(-1).to(torch.int32)
