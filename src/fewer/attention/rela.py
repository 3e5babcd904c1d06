"""ReLA: rectified scores in place of softmax, and a norm behind."""

import math

import torch
from torch import Tensor

from fewer.attention import ByRow, May, Out, Parts, Reading, RowScore, Shape, by_rows
from fewer.core import Budget, Paper, method


@method(Paper("2104.07012", "Sparse Attention with Linear Units", 2021, ledger=123))
class Rela(ByRow):
    """Weigh by max(score, 0), however much that sums to, and bring the heads of a token to length one together.

    z = max(scale q.k, 0) v; out = gain z / rms(z) sigmoid(gate z), where rms is over all heads' outputs of a token, and `gain` and
    `gate` are learnt for each of these (ReLA-g). A query for which no key is above zero gets zero. The gain begins at 1.

    A model that was trained with softmax must be trained on.

    >>> Rela().weigh(torch.tensor([[1.0, 0.5, -1.0]]), torch.ones(1, 3).bool(), {})
    tensor([[1.0000, 0.5000, 0.0000]])
    """

    floor: float = 1e-8  # of the mean square
    file: str = ""

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        wide = math.sqrt(3 / (shape.heads * shape.dim))  # as the authors' variables begin
        gate = (2 * torch.rand(shape.heads, shape.dim, generator=make) - 1) * wide
        return {"gain": torch.ones(shape.heads, shape.dim), "gate": gate}

    def weigh(self, score: RowScore, may: May, parts: Parts) -> RowScore:
        return score.relu()

    def mix(self, r: Reading, budget: Budget) -> Out:
        z = by_rows(r, lambda score, may, some: self.weigh(score, may, r.parts))
        gain, gate = (r.parts[name].to(z.dtype)[:, None] for name in ("gain", "gate"))
        rms = (z.square().mean((1, 3), keepdim=True) + self.floor).rsqrt()
        return (gain * z * rms * (gate * z).sigmoid()).to(r.q.dtype)
