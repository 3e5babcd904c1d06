"""Subspace: first directions point where the data lie."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper, method

from ._forms import Start


@method(Paper("2508.16929", "Attention Layers Add Into Low-Dimensional Residual Subspaces", 2025, ledger=474))
class Subspace(Start):
    """First directions lie among the principal components that hold a `share` of the variance, and point anywhere there.

    With V the first r right singular vectors of the data about their mean, r the fewest that hold the share: noise V_r^T,
    brought to length one. Who begins outside hears next to nothing, is never among the k loudest and dies; attention outputs
    fill some 60 % of their directions.

    Differs from the paper: the components are those of the batches from which mean and scale are taken too, and r follows from
    the share; there the number is chosen.

    >>> rows = torch.tensor([[2.0, 2.0, 0.0], [-2.0, -2.0, 0.0], [0.0, 0.0, 0.1], [0.0, 0.0, -0.1]])
    >>> Subspace().directions(torch.tensor([[-1.0, 5.0, 5.0]]), rows).abs()
    tensor([[0.7071, 0.7071, 0.0000]])
    """

    looks: ClassVar[bool] = True
    share: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}: give a share of the variance, above 0 and up to 1")

    def directions(self, noise: Float[Tensor, "many dim"], rows: Float[Tensor, "n dim"]) -> Float[Tensor, "many dim"]:
        basis = self.basis(rows).to(noise)
        return F.normalize(noise[:, : len(basis)] @ basis, dim=1)

    def basis(self, rows: Float[Tensor, "n dim"]) -> Float[Tensor, "r dim"]:
        """The components, the largest first, in float64."""
        about = rows.double() - rows.double().mean(0)
        variance, vectors = torch.linalg.eigh(about.mT @ about)
        held = variance.flip(0).clamp(min=0).cumsum(0)
        r = 1 + int((held < self.share * held[-1]).sum())
        return vectors.mT.flip(0)[: min(r, len(vectors))]
