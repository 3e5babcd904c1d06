"""Loki: rank tokens by the first principal coordinates of their keys."""

from dataclasses import replace

import torch

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._dots import best


@method(Paper("2406.02542", "Loki: Low-Rank Keys for Efficient Sparse Attention", 2024, ledger=209))
class PcaKeys(ByScore):
    """Rank a token by q.k within the `width` first principal directions of the keys, each head's own.

    `fit(q, k)` finds the directions (of the covariance of keys about their mean) and gives the method that has them. Before, they
    are the first `width` channels as they are. A `width` of 0 is a quarter of the channels, the paper's d_f = 0.25.

    Differs from the paper: nothing in the rule; it keeps all keys rotated, so that the first coordinates need no copy.

    >>> k = torch.tensor([[[[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]]]])  # along (1, 2)
    >>> m = PcaKeys(width=1).fit(k, k)
    >>> m.digest(k)[0].flatten().abs()  # all of their length
    tensor([2.2361, 4.4721, 6.7082])
    """

    phases = ("decode",)
    fits = "basis"

    width: int = 0
    basis: tuple[tuple[tuple[float, ...], ...], ...] = ()  # heads of keys, channels, directions
    rows: int = 1
    block: int = 1

    def fit(self, q: Query, k: Key) -> "PcaKeys":
        x = k.double().transpose(0, 1).flatten(1, 2)
        x = x - x.mean(1, keepdim=True)
        _, directions = torch.linalg.eigh(x.mT @ x)  # ascending
        first = directions.flip(-1)[..., : self._width(k)]
        return replace(self, basis=tuple(tuple(map(tuple, head)) for head in first.tolist()))

    def digest(self, k: Key) -> Digest:
        if not self.basis:
            return (k[..., : self._width(k)],)
        if len(self.basis) != k.shape[1]:
            raise ValueError(f"{self.name} was fitted to {len(self.basis)} heads of keys, here are {k.shape[1]}")
        return (k @ torch.tensor(self.basis, dtype=k.dtype, device=k.device),)

    def score(self, q: Query, digest: Digest) -> Score:
        (few,) = digest
        grouped = q.unflatten(1, (few.shape[1], -1))
        if self.basis:
            grouped = grouped @ torch.tensor(self.basis, dtype=q.dtype, device=q.device)[:, None]
        mine = grouped[..., : few.shape[-1]] @ few[:, :, None].to(q.dtype).mT
        return best(mine.flatten(1, 2) * q.shape[-1] ** -0.5, self.rows)

    def _width(self, k: Key) -> int:
        return self.width or max(1, k.shape[-1] // 4)
