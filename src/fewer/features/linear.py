"""Linear: each latent has a linear map of its own."""

from jaxtyping import Float, Int64
from torch import Tensor

from fewer.core import Paper, method

from ._forms import Encoder


@method(Paper("2309.08600", "Sparse Autoencoders Find Highly Interpretable Features in Language Models", 2023))
class Linear(Encoder):
    """A latent's pre-activation is one linear map of what is read: pre = x W_enc^T + b_enc.

    >>> Linear().maps(8), Linear().spread(torch.tensor([[3.0, -1.0]]))
    (8, tensor([[ 3., -1.]]))
    """

    def maps(self, latents: int) -> int:
        return latents

    def heard(self, index: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any 1"]:
        return index[..., None]

    def join(self, parts: Float[Tensor, "*any 1"]) -> Float[Tensor, "*any"]:
        return parts[..., 0]

    def spread(self, said: Float[Tensor, "batch maps"]) -> Float[Tensor, "batch latents"]:
        return said

    def atoms(self, directions: Float[Tensor, "maps dim"]) -> Float[Tensor, "latents dim"]:
        return directions
