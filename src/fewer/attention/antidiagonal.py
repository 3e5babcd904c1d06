"""XAttention: what lies on antidiagonals says what a block of attention holds."""

import torch

from fewer.attention import ByScore, Digest, Key, Query, Score, in_blocks
from fewer.core import Paper, method

from ._dots import dots


@method(Paper("2503.16428", "XAttention: Block Sparse Attention with Antidiagonal Scoring", 2025))
class Antidiagonal(ByScore):
    """Read the fewest blocks that hold the share `p` of the sums over antidiagonals of q.k, each `stride` apart.

    In a square of `stride` queries by `stride` keys, s = sum_i q_(S-1-i).k_i / (sqrt(d) S), which meets every row and column once.
    A block's score is log sum exp(s) over its squares. The budget is the most.

    Differs from the paper: it takes a softmax over each strip of squares; here strips are added up before the softmax, as
    a block's score may not depend on other blocks. Products of all pairs of squares are formed at once.

    >>> m = Antidiagonal(stride=2, rows=2, block=2)
    >>> q, k = torch.tensor([[[[1.0], [2.0]]]]), torch.tensor([[[[3.0], [5.0], [1.0], [0.0]]]])
    >>> m.score(q, m.digest(k))  # (2 * 3 + 1 * 5) / 2, (2 * 1 + 1 * 0) / 2
    tensor([[[[5.5000, 1.0000]]]])
    """

    phases = ("prefill",)

    p: float = 0.9  # "tau = 0.9"
    stride: int = 8
    rows: int = 64
    block: int = 64

    def digest(self, k: Key) -> Digest:
        real = in_blocks(torch.ones_like(k[..., :1]), self.block)
        return self._squares(in_blocks(k, self.block)), self._squares(real)[..., 0] > 0

    def score(self, q: Query, digest: Digest) -> Score:
        keys, real = digest
        parts = keys.shape[3]
        strips = self._squares(in_blocks(q, self.rows).flip(3))
        there = self._squares(in_blocks(torch.ones_like(q[:1, :1, :, :1]), self.rows).flip(3)).amax(-1) > 0
        said = dots(strips.flatten(2, 3), keys.flatten(2, 3)) * self.stride**-0.5  # sqrt(d S) is divided by already
        said = said.unflatten(2, (-1, strips.shape[3])).unflatten(4, (-1, parts))
        real = real.repeat_interleave(q.shape[1] // keys.shape[1], 1)[:, :, None, None]
        said = said.masked_fill(~(real & there[:, :, :, :, None, None]), -torch.inf)
        return said.logsumexp((3, 5))

    def _squares(self, x: torch.Tensor) -> torch.Tensor:
        """`[.., size, dim]` to `[.., size / stride, stride dim]`."""
        if x.shape[3] % self.stride:
            raise ValueError(f"{self.name}: blocks of {x.shape[3]} do not divide into squares of {self.stride}")
        return x.unflatten(3, (-1, self.stride)).flatten(-2)
