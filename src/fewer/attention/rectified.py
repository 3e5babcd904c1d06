"""Rectified sparse attention: now and then, the latest tokens are read again by all there is."""

from fewer.attention import Refresher
from fewer.core import Paper, method


@method(Paper("2506.04108", "Rectified Sparse Attention", 2025, ledger=445))
class Rectified(Refresher):
    """After each `every` tokens of decoding, run the model over them once more with dense attention, and keep the keys and values of that.

    Errors of sparse attention add up in the cache, because each token's key follows from what was read for it; so they do for `every` tokens only.

    Differs from the paper: any pattern decodes; a batch is refreshed at once, not as tokens come from several users.

    >>> [Rectified(every=3).due(step) for step in range(1, 7)]
    [0, 0, 3, 0, 0, 3]
    """

    every: int = 32

    def due(self, step: int) -> int:
        return 0 if step % self.every else self.every
