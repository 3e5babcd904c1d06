"""Double Sparsity: rank tokens by the few channels that weigh most."""

from dataclasses import replace

import torch

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method
from fewer.kernels import top_k

from ._dots import best


@method(Paper("2408.07092", "Post-Training Sparse Attention with Double Sparsity", 2024, ledger=206))
class HeavyChannels(ByScore):
    """Rank a token by the part of q.k that lies in `width` channels: those with the largest mean |q_c k_c|.

    `fit(q, k)` finds them, for each head of the keys, and gives the method that has them; what is remembered of a token is
    then `width` numbers. Before, all of k is remembered, and the channels are those of the largest |q_c| at hand, summed over
    the group, as in SparQ (2312.04985): that reads `width` numbers a token, and saves no memory.

    Differs from the paper: its labels are stored in 4 bits, these as the keys are.

    >>> q, k = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[5.0, 1.0], [0.0, 2.0]]]])
    >>> m = HeavyChannels(width=1).fit(q, k)  # mean |q k| is 2.5 and 4.5
    >>> m.heavy, m.digest(k)[0].flatten()
    (((1,),), tensor([1., 2.]))
    >>> m.score(q, m.digest(k)) * 2**0.5
    tensor([[[[3.0000, 6.0000]]]])
    """

    phases = ("decode",)
    fits = "heavy"

    width: int = 8  # a 16th of 128 channels, the paper's default
    heavy: tuple[tuple[int, ...], ...] = ()
    rows: int = 1
    block: int = 1

    def fit(self, q: Query, k: Key) -> "HeavyChannels":
        size = q.abs().mean((0, 2)).unflatten(0, (k.shape[1], -1)).sum(1) * k.abs().mean((0, 2))
        best_first = size.argsort(dim=-1, descending=True, stable=True)[:, : self.width]
        return replace(self, heavy=tuple(tuple(sorted(row)) for row in best_first.tolist()))

    def digest(self, k: Key) -> Digest:
        if not self.heavy:
            return (k,)
        if len(self.heavy) != k.shape[1]:
            raise ValueError(f"{self.name} was fitted to {len(self.heavy)} heads of keys, here are {k.shape[1]}")
        at = torch.tensor(self.heavy, device=k.device)[None, :, None]
        return (k.gather(-1, at.expand(*k.shape[:3], -1)),)

    def score(self, q: Query, digest: Digest) -> Score:
        (k,) = digest
        grouped = q.unflatten(1, (k.shape[1], -1))
        if self.heavy:
            at = torch.tensor(self.heavy, device=q.device)[None, :, None, None]
            few = grouped.gather(-1, at.expand(*grouped.shape[:-1], -1))
        else:
            few = grouped * top_k(grouped.abs().sum(2, keepdim=True), min(self.width, q.shape[-1]))
        return best((few @ k[:, :, None].to(q.dtype).mT).flatten(1, 2) * q.shape[-1] ** -0.5, self.rows)
