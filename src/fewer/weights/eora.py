"""EoRA: a small dense part beside the survivors makes up for the rest."""

from dataclasses import replace

import torch

from fewer.calibrate import Gram, Stats
from fewer.core import Paper, method
from fewer.weights import Corrector, Pruned, Weight

TITLE = "EoRA: Training-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation"


@method(Paper("2410.21271", TITLE, 2024, ledger=414, equation="Algorithm 1"))
class Eora(Corrector):
    """Add the matrix of rank `rank` that brings the outputs on the calibration data closest to the dense map's.

    With D = w - w' and H = X^T X / n = Q L Q^T: truncate the singular values of D Q L^(1/2) and go back by
    L^(-1/2) Q^T. No other matrix of that rank has a smaller ||(D - left right) X||. The survivors do not move.

    Differs from the paper: directions that no input takes (L = 0) get no compensation, in place of a division by 0.

    The error is 2 in a feature of size 1 and 1 in one of size 4: rank 1 mends the second.

    >>> w, x = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 4.0], [1.0, -4.0]])
    >>> gone = Pruned(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool), budget("1"))
    >>> left, right = Eora(rank=1).correct(w, gone, observe(Eora.needs, w, x)).low_rank
    >>> (left @ right).abs().round(decimals=4)
    tensor([[0., 0.],
            [0., 1.]])
    """

    needs = (Gram,)
    rank: int = 32

    def correct(self, w: Weight, pruned: Pruned, stats: Stats) -> Pruned:
        lost = (w.float() - pruned.dense().float()).double()
        size, q = torch.linalg.eigh(stats[Gram].value.double())
        root = size.clamp(min=0).sqrt()
        root[size < size[-1] * len(size) * torch.finfo(torch.float32).eps] = 0  # what rounding made of zero
        u, s, v = torch.linalg.svd(lost @ (q * root), full_matrices=False)
        rank = min(self.rank, len(s))
        half = s[:rank].sqrt()  # both factors of one size: halves overflow last
        left, right = u[:, :rank] * half, half[:, None] * v[:rank] * torch.where(root > 0, 1 / root, 0) @ q.mT
        left, right = left.to(w.dtype), right.to(w.dtype)
        if pruned.low_rank:
            left, right = torch.cat([pruned.low_rank[0], left], 1), torch.cat([pruned.low_rank[1], right])
        return replace(pruned, low_rank=(left, right))
