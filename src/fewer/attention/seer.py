"""SeerAttention: a learnt gate over pooled queries and keys."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import ByScore, Digest, Key, Query, Score, in_blocks
from fewer.core import Paper, method

from ._dots import dots, means

Matrices = tuple[tuple[tuple[float, ...], ...], ...]


@method(Paper("2410.13276", "SeerAttention: Learning Intrinsic Sparse Attention in Your LLMs", 2024, ledger=193))
class Seer(ByScore):
    """Rank a block by (W_q mean(q)) . (W_k [mean(k), max(k), min(k)]) / sqrt(g), g the width of the gate.

    `for_queries` holds a matrix [g, dim] for each head of the keys, `for_keys` one [g, 3 dim]: what was distilled from the true
    attention's block maxima. Without, both are the mean alone, as in `bi_level`.

    Differs from the paper: pools what attention sees (rotated) and gives the gate no rotation of its own; a group shares
    a gate; how it is learnt is not here.

    >>> m = Seer(for_queries=(((1.0,),),), for_keys=(((0.0, 1.0, 1.0),),), rows=1, block=2)
    >>> m.score(torch.tensor([[[[2.0]]]]), m.digest(torch.tensor([[[[1.0], [4.0]]]])))  # 2 * (4 + 1)
    tensor([[[[10.]]]])
    """

    for_queries: Matrices = ()
    for_keys: Matrices = ()
    rows: int = 64
    block: int = 64

    def digest(self, k: Key) -> Digest:
        mean = means(k, self.block)
        if not self.for_keys:
            return (mean,)
        high, low = in_blocks(k, self.block, -torch.inf).amax(3), in_blocks(k, self.block, torch.inf).amin(3)
        return (torch.cat([mean, high, low], -1) @ self._matrices(self.for_keys, k, 3).mT,)

    def score(self, q: Query, digest: Digest) -> Score:
        pooled, (gate,) = means(q, self.rows), digest
        if self.for_queries:
            grouped = pooled.unflatten(1, (gate.shape[1], -1))
            pooled = (grouped @ self._matrices(self.for_queries, q, 1)[:, None].mT).flatten(1, 2)
        return dots(pooled, gate)

    def _matrices(self, said: Matrices, x: Key, times: int) -> Float[Tensor, "kv_heads gate wide"]:
        w = torch.tensor(said, dtype=x.dtype, device=x.device)
        if w.ndim != 3 or w.shape[2] != times * x.shape[-1]:
            want = f"[kv_heads, gate, {times * x.shape[-1]}]"
            raise ValueError(
                f"{self.name}: a gate of shape {list(w.shape)} does not read blocks here; it must be {want}"
            )
        return w
