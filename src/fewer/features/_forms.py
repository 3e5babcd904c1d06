"""What a dictionary is made of beside its sparsifier: how it reads, what its atoms may be, and where both begin."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.core import Method

Parts = Mapping[str, Tensor]


class Encoder(Method):
    """How pre-activations are made of what the encoder's linear maps say. By default a latent has a map of its own."""

    @abstractmethod
    def maps(self, latents: int) -> int:
        """How many linear maps so many latents take. ValueError: that many latents cannot be had."""

    @abstractmethod
    def heard(self, index: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any few"]:
        """Which maps a latent hears."""

    @abstractmethod
    def join(self, parts: Float[Tensor, "*any few"]) -> Float[Tensor, "*any"]:
        """A pre-activation, of what these say; differentiable."""

    @abstractmethod
    def atoms(self, directions: Float[Tensor, "maps dim"]) -> Float[Tensor, "latents dim"]:
        """What the latents' first atoms are, of length one, if the maps begin in these directions."""

    @abstractmethod
    def spread(self, said: Float[Tensor, "batch maps"]) -> Float[Tensor, "batch latents"]:
        """All pre-activations; differentiable."""

    def at(self, said: Float[Tensor, "batch maps"], index: Int64[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
        """The same at some places of each row; nothing else is made, nor gets a gradient."""
        heard = self.heard(index)
        return self.join(said.gather(1, heard.flatten(1)).view(heard.shape))


class Decoder(Method):
    """What the atoms may be: how they are made of what is learnt, at each step anew. By default they are what is learnt."""

    looks: ClassVar[bool] = False  # whether it must see data before it begins
    fixed: ClassVar[tuple[str, ...]] = ()  # what of `begin` is not learnt

    @abstractmethod
    def begin(
        self, atoms: Float[Tensor, "latents out"], rows: Float[Tensor, "n out"], draw: torch.Generator
    ) -> dict[str, Tensor]:
        """What atoms are made of, at first. `rows` are data, each site divided by its scale, the mean not taken off."""

    @abstractmethod
    def atoms(self, parts: Parts) -> Float[Tensor, "latents out"]:
        """The atoms, of length one, differentiable by the parts."""

    def told(self, parts: Parts, scale: Float[Tensor, " out"]) -> dict[str, Tensor]:
        """What a learnt dictionary keeps to show for it, in the units of the data. By default, nothing."""
        return {}


class Start(Method):
    """First directions of encoder and decoder."""

    looks: ClassVar[bool] = False  # whether it must see data

    @abstractmethod
    def directions(self, noise: Float[Tensor, "many dim"], rows: Float[Tensor, "n dim"]) -> Float[Tensor, "many dim"]:
        """Directions of length one, from normal noise. `rows` are data about the mean, each site divided by its scale."""
