"""BiFormer: regions are read as their means attend."""

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._dots import dots, means


@method(Paper("2303.08810", "BiFormer: Vision Transformer with Bi-Level Routing Attention", 2023, ledger=223))
class BiLevel(ByScore):
    """Rank a block of keys by mean(q).mean(k) / sqrt(d).

    Differs from the paper: causal, and blocks of a line, where it has regions of an image.

    >>> m = BiLevel(rows=2, block=2)
    >>> q, k = torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[[[1.0], [2.0], [5.0]]]])
    >>> m.score(q, m.digest(k))  # 2 * 1.5, 2 * 5
    tensor([[[[ 3., 10.]]]])
    """

    rows: int = 64
    block: int = 64

    def digest(self, k: Key) -> Digest:
        return (means(k, self.block),)

    def score(self, q: Query, digest: Digest) -> Score:
        return dots(means(q, self.rows), digest[0])
