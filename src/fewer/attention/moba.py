"""MoBA: each query token reads the blocks whose mean key it likes best."""

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._dots import best, dots, means


@method(Paper("2502.13189", "MoBA: Mixture of Block Attention for Long-Context LLMs", 2025, ledger=221))
class Moba(ByScore):
    """Rank a block by q.mean(k) / sqrt(d), each query token and each head for itself; its own block is always read, and counted.

    Nothing is learnt but what the model itself learns while it reads so: gradients pass through what is read, and none
    through the choice. Some layers may stay dense, as the paper has the last few (`@ !*.30.*,!*.31.*`), and going from
    one to the other changes no weight. It prefills and trains; decoding is dense, unless one says `@ prefill,decode`.

    Differs from the paper: nothing. Top-3 blocks of 512 are a budget of 1536. (fla's `naive` form takes the own block beside
    its top k - 1, reads everything where k is 1, and has no groups.) With several `rows`, their best query asks, where
    `bi_level` takes their mean.

    >>> m = Moba(rows=1, block=2)
    >>> q, k = torch.ones(1, 1, 5, 1), torch.tensor([[[[1.0], [2.0], [5.0], [-9.0], [0.0]]]])  # means 1.5, -2, 0
    >>> m.attend(q, k, budget("4"))[0, 0, [0, 3, 4]].int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """

    phases = ("prefill",)

    rows: int = 1
    block: int = 512  # "block size 512, top-3" of the paper's scaling laws

    def digest(self, k: Key) -> Digest:
        return (means(k, self.block),)

    def score(self, q: Query, digest: Digest) -> Score:
        return best(dots(q, digest[0]), self.rows)
