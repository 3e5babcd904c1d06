"""How dictionaries that are learnt from one stream are held against it, as a value: each alone, added up, or drawn to each other."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .known import Known
from .one import One


class Together(ABC):
    """A loss of several dictionaries."""

    adds: ClassVar[bool] = False  # whether what they write at a site adds up

    @abstractmethod
    def loss(self, several: Sequence[One], known: Known, rows: Float[Tensor, "n dim"], progress: float) -> Tensor:
        """`rows` about their mean and scaled; progress is 0 at the first step and 1 at the last."""


@dataclass(frozen=True)
class Apart(Together):
    """Each explains what it writes by itself; the sum over all."""

    def loss(self, several: Sequence[One], known: Known, rows: Float[Tensor, "n dim"], progress: float) -> Tensor:
        return torch.stack([one.loss(rows, progress) for one in several]).sum()


@dataclass(frozen=True)
class Summed(Together):
    """What they write at each site, added up, against what is there: the mean over all columns that somebody writes.

    A cross-layer transcoder is one dictionary a layer that reads there and writes there and at all later layers.
    """

    adds: ClassVar[bool] = True

    def loss(self, several: Sequence[One], known: Known, rows: Float[Tensor, "n dim"], progress: float) -> Tensor:
        left, costs = {name: rows[:, at] for name, at in known.sites.items()}, []
        for one in several:
            said, cost = one.told(rows, progress)
            costs.append(cost)
            widths = [known.sites[name].stop - known.sites[name].start for name in one.pupil.writes]
            for name, part in zip(one.pupil.writes, said.split(widths, 1), strict=True):
                left[name] = left[name] - part
        written = dict.fromkeys(name for one in several for name in one.pupil.writes)
        error = torch.cat([left[name] for name in written], 1)
        dead = [
            one.of_the_dead(rows, torch.cat([left[name] for name in one.pupil.writes], 1).detach()) for one in several
        ]
        return error.square().mean() + torch.stack([*costs, *dead]).sum()


@dataclass(frozen=True)
class Mutual(Together):
    """Apart, and drawn to each other: + weight * mean over pairs of (1 - mean over atoms of the largest cosine).

    What several dictionaries find by themselves is likelier to be there than what one finds (Marks et al. 2024, 2411.01220).
    A pair counts both ways, its mean; a step makes all cosines of a pair, latents^2 dim multiplications. With weight 0 each
    is learnt as alone.

    Differs from the paper: encoders are not tied to decoders, whose atoms alone are drawn together; what stays silent is
    taught by the auxiliary loss and not drawn anew; the weight does not rise over the first steps.

    >>> a, b = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> Mutual().far(a, b)  # largest cosines: 1 and 0.8 one way, 1 and 0.8 the other
    tensor(0.1000)
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight={self.weight}: give 0 or more")

    def loss(self, several: Sequence[One], known: Known, rows: Float[Tensor, "n dim"], progress: float) -> Tensor:
        found = Apart().loss(several, known, rows, progress)
        if not self.weight:
            return found
        if len({one.pupil.writes for one in several}) > 1 or len(several) < 2:
            raise ValueError(
                "dictionaries are drawn to each other where there are two or more that write the same sites"
            )
        atoms = [one.atoms() for one in several]
        return found + self.weight * torch.stack([self.far(a, b) for a, b in itertools.combinations(atoms, 2)]).mean()

    def far(self, a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, ""]:
        """How far two sets of atoms of length one are from having the same: 0 if all atoms have their equal."""
        near = a @ b.mT
        return 1 - (near.amax(1).mean() + near.amax(0).mean()) / 2


APART = Apart()
