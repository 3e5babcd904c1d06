"""What is learnt, and how: the settings of dictionaries, as values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fewer.core import Budget
from fewer.features import ByPursuit, Decoder, Encoder, Sparsifier, Start
from fewer.features.free import Free
from fewer.features.isotropic import Isotropic
from fewer.features.linear import Linear
from fewer.models.tap import GRADIENT


@dataclass(frozen=True)
class Pupil:
    """One dictionary to learn: of the sites of the stream, which it reads (all by default) and which it writes (what it reads).

    `seed` is of its first directions. How it reads, what its atoms may be and where it begins are values too.
    """

    sparsifier: Sparsifier
    budget: Budget
    latents: int
    seed: int = 0
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    encoder: Encoder = Linear()  # noqa: RUF009  frozen, as the next two
    decoder: Decoder = Free()  # noqa: RUF009
    start: Start = Isotropic()  # noqa: RUF009

    def __post_init__(self) -> None:
        if self.latents < 1:
            raise ValueError(f"latents={self.latents}: ask for at least 1")
        if isinstance(self.budget.keep, int) and not self.budget.group and self.budget.keep > self.latents:
            raise ValueError(f"budget '{self.budget}' of {self.latents} latents: keep at most {self.latents}")
        self.encoder.maps(self.latents)
        if isinstance(self.sparsifier, ByPursuit) and not isinstance(self.encoder, Linear):
            raise ValueError(f"{self.sparsifier.name} has no encoder, so {self.encoder.name} says nothing to it")

    def at(self, sites: Sequence[str]) -> "Pupil":
        """The same with all sites named. ValueError: one that the stream does not have."""
        reads = self.reads or tuple(name for name in sites if not name.endswith(GRADIENT))
        whole = replace(self, reads=reads, writes=self.writes or reads)
        for name in (*whole.reads, *whole.writes):
            if name not in sites:
                raise ValueError(f"site {name!r} is not in the stream; there are: {', '.join(sites)}")
        if self.sparsifier.feels and (whole.reads != whole.writes or not {r + GRADIENT for r in reads} <= {*sites}):
            names = ", ".join(r + GRADIENT for r in reads)
            raise ValueError(f"{self.sparsifier.name} writes what it reads, and needs {names} in the stream beside it")
        return whole


@dataclass(frozen=True)
class Lesson:
    """How dictionaries are learnt: Adam, the decoder's rows at length 1, dead latents taught by what the others leave over.

    The rate is 0.05 / sqrt(dim) unless given, a twentieth of the entries of a row of length one, and falls to 0 over the last
    fifth: with a fifth of it a dictionary of a few hundred steps misses half as much again (docs/LOG.md).
    A latent is dead that has been silent for `dead_after` tokens, by default 1/10 of the run and at most 10 million. `aux`
    weighs the share of what the living leave over that `aux_latents` of the dead (by default dim / 2) miss (Gao et al. 2024,
    2406.04093, A.2).
    `hide` is a share of the columns, drawn for each batch: who speaks does not see them, and the error is theirs alone. So
    noise, of which the rest says nothing, is learnt less by heart where there are too many latents (Chidambaram et al. 2023,
    2302.12715). A pursuit sees atoms in the other columns, brought to length one there; an encoder, of which the paper does not
    speak, hears the mean in place of what is hidden, and the rest louder by 1 / (1 - hide).
    """

    steps: int = 2000
    rate: float | None = None
    aux: float = 1 / 32
    aux_latents: int | None = None
    dead_after: int | None = None
    skip: bool = False
    seed: int = 0
    half: bool = True  # on a GPU: products in bfloat16, parameters and moments in float32
    tf32: bool = True  # on a GPU with half=False: products in TF32
    save_after: float = 60.0
    hide: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.hide < 1:
            raise ValueError(f"hide={self.hide}: give the share of columns to hide, from 0 on and below 1")


PLAIN = Lesson()
