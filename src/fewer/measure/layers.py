"""One dictionary for many layers: how alike layers are, which of them belong together, and where each latent speaks."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer.layout import Codes


def layer_cosine(pieces: Iterable[Float[Tensor, "layers _ dim"]]) -> Float[Tensor, "layers layers"]:
    """The mean cosine between what two layers say at a token, in float64; the neighbours' is the first off-diagonal
    (Lawson et al. 2024, 2409.04185, section 4).

    >>> layer_cosine([torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]])])
    tensor([[1.0000, 0.6000],
            [0.6000, 1.0000]], dtype=torch.float64)
    """
    return _mean_over_tokens(pieces, lambda cosine: cosine)


def angular_distance(pieces: Iterable[Float[Tensor, "layers _ dim"]]) -> Float[Tensor, "layers layers"]:
    """The mean angle between what two layers say at a token, arccos(cosine) / pi: 0 the same way, 1 the opposite one
    (Ghilardi et al. 2024, 2410.21508, eq. 4).

    >>> angular_distance([torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])])
    tensor([[0.0000, 0.5000],
            [0.5000, 0.0000]], dtype=torch.float64)
    """
    return _mean_over_tokens(pieces, lambda cosine: cosine.clamp(-1, 1).arccos() / math.pi)


def _mean_over_tokens(pieces: Iterable[Tensor], of: Callable[[Tensor], Tensor]) -> Tensor:
    total, tokens = None, 0
    for x in pieces:
        way = F.normalize(x.double(), dim=-1)
        each = of(torch.einsum("and,bnd->abn", way, way)).sum(-1)
        total, tokens = each if total is None else total + each, tokens + x.shape[1]
    if total is None or not tokens:
        raise ValueError("no token was heard: give at least one piece with one row for each layer")
    mean = total / tokens
    return mean - torch.diag(mean.diagonal() - of(torch.ones(len(mean), dtype=mean.dtype, device=mean.device)))


def layer_groups(distance: Float[Tensor, "layers layers"], count: int) -> list[range]:
    """Layers dealt out to `count` groups of neighbours: at each step the two neighbouring groups are put together whose most
    distant layers are nearest (complete linkage; ties go to the earlier). All layers are in one group each.

    Differs from the paper (Ghilardi et al. 2024, 2410.21508, section 3): only neighbours are put together, so that groups are
    contiguous always; there this is what was found. ValueError: more groups than layers.

    >>> layer_groups(torch.tensor([[0.0, 0.1, 0.6], [0.1, 0.0, 0.5], [0.6, 0.5, 0.0]]), 2)
    [range(0, 2), range(2, 3)]
    """
    if not 1 <= count <= len(distance):
        raise ValueError(f"{count} groups of {len(distance)} layers: ask for 1 to {len(distance)}")
    groups = [range(i, i + 1) for i in range(len(distance))]
    while len(groups) > count:
        far = [_widest(distance, range(a.start, b.stop)) for a, b in itertools.pairwise(groups)]
        at = min(range(len(far)), key=far.__getitem__)
        groups[at : at + 2] = [range(groups[at].start, groups[at + 1].stop)]
    return groups


def amad(distance: Float[Tensor, "layers layers"], groups: Sequence[range]) -> float:
    """The mean over groups of the largest distance within each (average maximum angular distance, Ghilardi et al. 2024): 0 if
    each layer is a group; the fewest groups whose is below some threshold will do.

    >>> amad(torch.tensor([[0.0, 0.25, 0.6], [0.25, 0.0, 0.5], [0.6, 0.5, 0.0]]), [range(0, 2), range(2, 3)])
    0.125
    """
    return sum(_widest(distance, group) for group in groups) / len(groups)


def _widest(distance: Tensor, group: range) -> float:
    return float(distance.double()[group.start : group.stop, group.start : group.stop].max())


@dataclass(frozen=True, eq=False)
class LayerSpread:
    """Where latents speak: `mass` is what each said at each layer, summed over tokens; variances are of the layer's number L,
    drawn in proportion to what is said (Lawson et al. 2024, 2409.04185, section 3.3).
    """

    mass: Float[Tensor, "layers latents"]
    of_token: float  # E[Var(L | latent, token)]
    of_prompt: float  # E[Var(L | latent, prompt)]
    of_latent: float  # E[Var(L | latent)]
    of_all: float  # Var(L)

    @property
    def shares(self) -> Float[Tensor, "layers latents"]:
        """The share of each layer in what a latent says; zeros for one that is silent."""
        return self.mass / self.mass.sum(0).clamp(min=1e-300)

    @property
    def ratio_token(self) -> float:
        """How much of a latent's spread over layers there is within single tokens: 0 is one layer a token, 1 all of it."""
        return self.of_token / self.of_latent if self.of_latent else 0.0

    @property
    def ratio_prompt(self) -> float:
        """The same within single prompts."""
        return self.of_prompt / self.of_latent if self.of_latent else 0.0

    @property
    def ratio_latent(self) -> float:
        """How much of the whole spread over layers single latents have: 0 if each has its layer, 1 if all have all."""
        return self.of_latent / self.of_all if self.of_all else 0.0


def layer_spread(prompts: Iterable[Sequence[Codes]]) -> LayerSpread:
    """How each latent's activation is spread over the layers of one dictionary for all, by token, prompt and in aggregate.

    `prompts`: for each, the codes at each layer, of the same tokens. With h = |activation| and p(l, t, f) = h / sum h,
        ratio_token = E[Var(L | T, F)] / E[Var(L | F)],   ratio_latent = E[Var(L | F)] / Var(L),
    each in 0..1 by the law of total variance.

    Differs from the paper: the expectations weigh a latent and token by what is said there; its code averages over all that
    could speak. ValueError: nothing is said, or prompts of different numbers of layers.

    >>> def at(*z):
    ...     return Codes.pack(torch.tensor(z)[:, None], torch.tensor(z)[:, None] != 0)
    >>> spread = layer_spread([[at(1.0, 0.0), at(1.0, 2.0)]])  # two layers, two tokens, one latent
    >>> spread.shares[:, 0].tolist(), spread.of_token, spread.of_latent  # 2/4 * 1/4; 1/4 * 3/4
    ([0.25, 0.75], 0.125, 0.1875)
    """
    mass, token, prompt = None, 0.0, 0.0
    for layers in prompts:
        z = torch.stack([codes.dense().double().abs() for codes in layers])  # [layers, tokens, latents]
        if mass is not None and len(z) != len(mass):
            raise ValueError(f"prompts of {len(mass)} and of {len(z)} layers: expected the same for all")
        token, prompt = token + _within(z), prompt + _within(z.sum(1))
        mass = z.sum(1) if mass is None else mass + z.sum(1)
    if mass is None or not mass.sum() > 0:
        raise ValueError("no latent said anything: there is nothing to spread")
    whole = float(mass.sum())
    return LayerSpread(mass, token / whole, prompt / whole, _within(mass) / whole, _within(mass.sum(1)) / whole)


def _within(z: Float[Tensor, "layers *some"]) -> float:
    """The sum over all places of their mass times the variance of L there."""
    number = torch.arange(len(z), dtype=z.dtype, device=z.device).view(-1, *[1] * (z.ndim - 1))
    total = z.sum(0)
    middle = (number * z).sum(0) / total.clamp(min=1e-300)
    return float((z * (number - middle).square()).sum())
