"""MagicPIG: the tokens whose hashes meet the query's in most tables."""

from dataclasses import replace

import torch

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._dots import best


@method(Paper("2410.16179", "MagicPIG: LSH Sampling for Efficient LLM Generation", 2024, ledger=323))
class MagicPig(ByScore):
    """Rank a token by the number of tables in which all `bits` signs of random projections are the query's.

    Keys are hashed about their mean, which `fit(q, k)` finds; before, about zero. A key at the angle a meets the query in a table
    with the probability (1 - a / pi)^bits.

    Differs from the paper: it reads who meets the query in two tables or more, and divides each weight by the probability
    of that, so that the sum is unbiased. Here the budget says how many are read, and nothing is divided: a `Keep` carries no
    weights. So what is read is a ranking by angle, with the bias of one.

    >>> m = MagicPig(bits=1, tables=200)
    >>> k = torch.tensor([[[[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]])
    >>> m.score(torch.tensor([[[[1.0, 0.0]]]]), m.digest(k)).flatten()  # angles 0, pi / 2 and pi: all, half, none
    tensor([200., 106.,   0.])
    """

    phases = ("decode",)
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
        if self.centre:
            k = k - torch.tensor(self.centre, dtype=k.dtype, device=k.device)[:, None]
        return (self._hash(k),)

    def score(self, q: Query, digest: Digest) -> Score:
        (codes,) = digest
        kv_heads, keys, _ = codes.shape[1:]
        mine = self._hash(q).unflatten(1, (kv_heads, -1)).flatten(2, 3)
        met = torch.zeros(*mine.shape[:3], keys, dtype=torch.int32, device=q.device)
        for table in range(self.tables):  # never [queries, keys, tables]
            met += mine[..., table, None] == codes[:, :, None, :, table]
        return best(met.to(q.dtype).unflatten(2, (-1, q.shape[2])).flatten(1, 2), self.rows)

    def _hash(self, x: Key) -> torch.Tensor:
        make = torch.Generator().manual_seed(self.seed)
        along = torch.randn(x.shape[-1], self.tables * self.bits, generator=make).to(x)
        signs = (x @ along > 0).unflatten(-1, (self.tables, self.bits)).long()
        return (signs << torch.arange(self.bits, device=x.device)).sum(-1).to(torch.int32)
