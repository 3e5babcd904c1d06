"""Archetypal: atoms are mixtures of points of the data."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.core import Paper, method

from ._forms import Decoder, Parts

ROUNDS = 20  # of k-means
FIRST = 0.9  # an atom begins with so much of one point, and the rest of all others together
STEEP = 10.0  # a logit moves by so much more than the rate of learning, so that mixtures change within a short run


@method(
    Paper(
        "2502.12892",
        "Archetypal SAE: Adaptive and Stable Dictionary Learning for Concept Extraction in Large Vision Models",
        2025,
        equation="eq. 4",
        ledger=348,
    )
)
class Archetypal(Decoder):
    """Atoms point where mixtures of data points lie, D = A C + offset: rows of A are positive and sum to one, offsets are short.

    C are `points` centroids (k-means) of the data, the same for every seed, so that different seeds find the same atoms. With
    delta = 0 an atom is a mixture and nothing else (A-SAE); |offset| <= delta, in root mean square lengths of C, relaxes it
    (RA-SAE). A = softmax of what is learnt, which keeps it on the simplex at every step; offset = delta o / max(1, |o|).

    The plain matrix is folded in when all is learnt; `own` keeps "mix" (A), "points" (C) and "offset", in the units of the data,
    of which decoder rows are A C + offset up to their length.

    Differs from the paper: rows are brought to length one, where the paper has one learnt factor for all; A is a softmax and not
    relu divided by its sum, whose zeros hear no gradient; delta counts in lengths of C.

    >>> parts = {"mix": torch.zeros(1, 2), "points": torch.tensor([[6.0, 0.0], [0.0, 8.0]]), "offset": torch.zeros(1, 2)}
    >>> Archetypal().atoms(parts)
    tensor([[0.6000, 0.8000]])
    """

    looks: ClassVar[bool] = True
    fixed: ClassVar[tuple[str, ...]] = ("points",)
    points: int = 256
    delta: float = 0.1

    def __post_init__(self) -> None:
        if self.points < 2 or self.delta < 0:
            raise ValueError(
                f"points={self.points}, delta={self.delta}: give at least 2 points, and a length from 0 on"
            )

    def begin(
        self, atoms: Float[Tensor, "latents out"], rows: Float[Tensor, "n out"], draw: torch.Generator
    ) -> dict[str, Tensor]:
        points = centroids(rows.float(), self.points)
        points = points / points.square().sum(1).mean().sqrt().clamp(min=1e-12)
        mix = torch.zeros(len(atoms), len(points))
        logit = torch.tensor(FIRST * (len(points) - 1) / (1 - FIRST)).log().item() / STEEP
        at = torch.arange(len(atoms))
        mix[at, at % len(points)] = logit
        return {"mix": mix.to(rows.device), "points": points, "offset": torch.zeros_like(atoms, device=rows.device)}

    def atoms(self, parts: Parts) -> Float[Tensor, "latents out"]:
        return F.normalize(self.mixed(parts) @ parts["points"] + self.offset(parts), dim=1)

    def mixed(self, parts: Parts) -> Float[Tensor, "latents points"]:
        """A."""
        return (STEEP * parts["mix"]).softmax(1)

    def offset(self, parts: Parts) -> Float[Tensor, "latents out"]:
        """At most delta long, each."""
        o = parts["offset"]
        return self.delta * o / o.square().sum(1, keepdim=True).clamp(min=1).sqrt()

    def told(self, parts: Parts, scale: Float[Tensor, " out"]) -> dict[str, Tensor]:
        return {
            "mix": self.mixed(parts),
            "points": parts["points"] * scale,
            "offset": self.offset(parts) * scale,
        }


def centroids(rows: Float[Tensor, "n dim"], count: int) -> Float[Tensor, "count dim"]:
    """k-means, begun with rows far from each other (k-means++); a centroid that no row is nearest to stays where it is.

    >>> centroids(torch.tensor([[0.0], [8.0], [1.0], [9.0]]), 2).sort(0).values
    tensor([[0.5000],
            [8.5000]])
    """
    if len(rows) < count:
        raise ValueError(
            f"{len(rows)} rows are seen before the first step, too few for points={count}; write fewer points"
        )
    found = _spread(rows, count)
    for _ in range(ROUNDS):
        nearest = _nearest(rows, found)
        number = torch.bincount(nearest, minlength=count)
        total = torch.zeros_like(found).index_add_(0, nearest, rows)
        found = torch.where(number[:, None] > 0, total / number.clamp(min=1)[:, None], found)
    return found


def _spread(rows: Float[Tensor, "n dim"], count: int) -> Float[Tensor, "count dim"]:
    """Rows drawn one after another, as likely as they are far from those that were, squared; the same for the same data."""
    make = torch.Generator().manual_seed(0)
    chosen, far = [int(torch.randint(len(rows), (), generator=make))], torch.full((len(rows),), torch.inf)
    while len(chosen) < count:
        far = torch.minimum(far, (rows - rows[chosen[-1]]).square().sum(1).cpu())
        chosen.append(int(torch.multinomial(far.clamp(min=1e-12), 1, generator=make)))
    return rows[chosen]


def _nearest(rows: Float[Tensor, "n dim"], found: Float[Tensor, "count dim"]) -> Int64[Tensor, " n"]:
    half = found.square().sum(1) / 2
    return torch.cat([(some @ found.mT - half).argmax(1) for some in rows.split(4096)])
