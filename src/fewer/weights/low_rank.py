"""Low rank: the largest part of what was pruned comes back as two thin matrices."""

from dataclasses import replace

import torch

from fewer.calibrate import Stats
from fewer.core import Paper, method
from fewer.weights import Corrector, Pruned, Weight

TITLE = "ZeroQuant-V2: Exploring Post-training Quantization in LLMs from Comprehensive Study to Low Rank Compensation"


@method(Paper("2303.08302", TITLE, 2023, equation="LoRC"))
class LowRank(Corrector):
    """Add the matrix of rank `rank` that is nearest to what is missing, w - w', whatever the inputs are.

    w - w' = U S V^T: the first `rank` of them, left = U sqrt(S) and right = sqrt(S) V^T. What EoRA must beat, which
    asks for the nearest outputs instead.

    Differs from the paper: what is missing was pruned there by rounding, here by zeros; the factors stay as they are
    (8 bits there).

    What is missing is 2 in one place and 1 in another: rank 1 brings back the 2.

    >>> w = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> gone = Pruned(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool), budget("1"))
    >>> left, right = LowRank(rank=1).correct(w, gone, Stats()).low_rank
    >>> (left @ right).round(decimals=4)
    tensor([[2., 0.],
            [0., 0.]])
    """

    rank: int = 32

    def correct(self, w: Weight, pruned: Pruned, stats: Stats) -> Pruned:
        u, s, v = torch.linalg.svd((w.float() - pruned.dense().float()).double(), full_matrices=False)
        half = s[: self.rank].sqrt()
        left, right = (u[:, : self.rank] * half).to(w.dtype), (half[:, None] * v[: self.rank]).to(w.dtype)
        if pruned.low_rank:
            left, right = torch.cat([pruned.low_rank[0], left], 1), torch.cat([pruned.low_rank[1], right])
        return replace(pruned, low_rank=(left, right))
