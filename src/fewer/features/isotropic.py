"""Isotropic: first directions point anywhere, as likely as anywhere else."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper, method

from ._forms import Start


@method(Paper("2406.04093", "Scaling and evaluating sparse autoencoders", 2024, ledger=23))
class Isotropic(Start):
    """First directions are normal noise, brought to length one; encoder and decoder begin as the same (appendix A.1).

    >>> Isotropic().directions(torch.tensor([[3.0, 4.0]]), torch.zeros(0, 2))
    tensor([[0.6000, 0.8000]])
    """

    def directions(self, noise: Float[Tensor, "many dim"], rows: Float[Tensor, "n dim"]) -> Float[Tensor, "many dim"]:
        return F.normalize(noise, dim=1)
