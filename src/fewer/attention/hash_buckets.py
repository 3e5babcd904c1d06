"""Hash buckets: queries read the keys that a random rotation puts in their bucket."""

import torch
import torch.nn.functional as F

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._dots import best


@method(
    Paper("2306.01160", "Faster Causal Attention Over Large Sequences Through Sparse Flash Attention", 2023, ledger=259)
)
class HashBuckets(ByScore):
    """Rank a token by the number of `rounds` in which its key falls into the query's bucket.

    A round turns x at random and takes the largest of [xR, -xR] for its bucket, of `buckets` (Reformer's hash, 2001.04451).

    Differs from the paper: it sorts by bucket and reads all of one; here the budget decides, and several rounds rank.

    >>> m = HashBuckets(buckets=2, rounds=8)
    >>> k = torch.tensor([[[[2.0], [-1.0]]]])
    >>> m.score(torch.tensor([[[[3.0]]]]), m.digest(k))  # of one sign in every round, of the other in none
    tensor([[[[8., 0.]]]])
    """

    buckets: int = 16
    rounds: int = 16
    seed: int = 0
    rows: int = 1
    block: int = 1

    def digest(self, k: Key) -> Digest:
        return (self._hash(k),)

    def score(self, q: Query, digest: Digest) -> Score:
        keys = F.one_hot(digest[0].long(), self.buckets).to(q.dtype).flatten(3)
        mine = F.one_hot(self._hash(q).long(), self.buckets).to(q.dtype).flatten(3)
        met = mine.unflatten(1, (keys.shape[1], -1)) @ keys[:, :, None].mT
        return best(met.flatten(1, 2), self.rows)

    def _hash(self, x: Key) -> torch.Tensor:
        make = torch.Generator().manual_seed(self.seed)
        turn = torch.randn(x.shape[-1], self.rounds * self.buckets // 2, generator=make).to(x)
        turned = (x @ turn).unflatten(-1, (self.rounds, -1))
        return torch.cat([turned, -turned], -1).argmax(-1).to(torch.int32)
