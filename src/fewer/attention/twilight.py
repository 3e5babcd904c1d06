"""Twilight: no more tokens than hold a share p of the attention."""

import torch

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._dots import best, dots


@method(
    Paper("2502.02770", "Twilight: Adaptive Attention Sparsity with Hierarchical Top-$p$ Pruning", 2025, ledger=220)
)
class Twilight(ByScore):
    """Estimate the attention by keys of `bits` bits, and read the fewest tokens that hold the share p of it.

    The budget is the most. A key is stored as floor((k - low) / step + 1/2), with low and step = (high - low) / (2^bits - 1)
    its own.

    Differs from the paper: the budget's tokens are proposed by the same estimate, where it takes another selector's; a sort
    in place of a binary search for the threshold; codes take a byte each; a group's heads choose together.

    >>> m = Twilight(bits=2)
    >>> codes, low, step = m.digest(torch.tensor([[[[0.0, 3.0, 1.2]]]]))
    >>> codes.flatten().tolist(), low.item(), step.item()
    ([0, 3, 1], 0.0, 1.0)
    """

    phases = ("decode",)

    p: float = 0.95
    bits: int = 4
    rows: int = 1
    block: int = 1

    def digest(self, k: Key) -> Digest:
        low, high = k.amin(-1, keepdim=True), k.amax(-1, keepdim=True)
        step = (high - low) / (2**self.bits - 1)
        codes = ((k - low) / step.clamp(min=torch.finfo(k.dtype).tiny) + 0.5).floor()
        return codes.clamp(0, 2**self.bits - 1).to(torch.uint8), low, step

    def score(self, q: Query, digest: Digest) -> Score:
        codes, low, step = digest
        return best(dots(q, codes.to(q.dtype) * step.to(q.dtype) + low.to(q.dtype)), self.rows)
