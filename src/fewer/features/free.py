"""Free: an atom is a row of a matrix, and may point anywhere."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper, method

from ._forms import Decoder, Parts


@method(Paper("2309.08600", "Sparse Autoencoders Find Highly Interpretable Features in Language Models", 2023))
class Free(Decoder):
    """Atoms are learnt themselves, as rows of length one.

    >>> Free().atoms({"decoder": torch.tensor([[0.6, 0.8]])})
    tensor([[0.6000, 0.8000]])
    """

    def begin(
        self, atoms: Float[Tensor, "latents out"], rows: Float[Tensor, "n out"], draw: torch.Generator
    ) -> dict[str, Tensor]:
        return {"decoder": atoms}

    def atoms(self, parts: Parts) -> Float[Tensor, "latents out"]:
        return parts["decoder"]
