"""How many hidden neurons of a layer are on: per token, at each position, and which ones are hot or cold."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .estimate import Estimate, Score, mean, share, student


@dataclass(frozen=True, eq=False)
class Activity:
    """Counts of one layer's hidden neurons over windows of text, True being on; made by `activity`.

    Density is a share, lower is better: what is off need not be read.
    """

    on: Int[Tensor, " neurons"]  # the tokens at which each neuron was on
    windows: Float[Tensor, " windows"]  # the density of each window
    positions: Float[Tensor, " length"]  # the density at each position of a window
    per_token: Int[Tensor, " counts"]  # how many tokens had 0, 1, 2, ... neurons on

    @property
    def tokens(self) -> int:
        return int(self.per_token.sum())

    @property
    def density(self) -> Score:
        """The mean share of neurons that are on, with Student's interval over windows."""
        return Score("density", mean(self.windows), higher_is_better=False)

    @property
    def frequency(self) -> Float[Tensor, " neurons"]:
        """The share of tokens at which each neuron is on."""
        return self.on.double() / self.tokens

    def token_density(self, quantile: float | int) -> float:
        """The density that this share of all tokens does not exceed: the median token at 0.5."""
        reached = self.per_token.cumsum(0) >= math.ceil(quantile * self.tokens)
        return int(reached.int().argmax()) / len(self.on)

    def hot(self, of: float = 0.8) -> float:
        """The smallest share of neurons that carries this share of all activations: 0.17 to 0.26 in PowerInfer
        (Song et al. 2023, 2312.12456, section 3.1). Small is good for a cache; `of` itself where all are equally hot.
        """
        carried = self.on.sort(descending=True).values.cumsum(0)
        if not carried[-1]:
            return 0.0
        return (int((carried < of * int(carried[-1])).sum()) + 1) / len(self.on)

    def cold(self, below: float = 0.01) -> Estimate:
        """The share of neurons that are on at fewer than this share of tokens, with Wilson's interval over neurons."""
        return share(int((self.frequency < below).sum()), len(self.on))


def activity(pieces: Iterable[Bool[Tensor, "_ length neurons"]]) -> Activity:
    """Count who is on. Each piece holds some windows, all of the same length.

    ValueError: nothing was heard; windows of another length or width.

    >>> found = activity([torch.tensor([[[True, False], [True, True]]])])  # one window of two tokens
    >>> found.density.value, found.frequency.tolist(), found.positions.tolist()
    (0.75, [1.0, 0.5], [0.5, 1.0])
    >>> found.hot(0.6), found.cold(0.6).value  # neuron 0 carries 2 of 3; neuron 1 is on at half of the tokens
    (0.5, 0.5)
    """
    on = positions = per_token = None
    windows: list[Tensor] = []
    for piece in pieces:
        if on is not None and piece.shape[1:] != (len(positions), len(on)):
            raise ValueError(
                f"windows of {piece.shape[1]} tokens and {piece.shape[2]} neurons beside {len(positions)} and {len(on)}: "
                "expected the same for all"
            )
        count = piece.sum(-1)
        windows += [count.double().mean(-1).cpu() / piece.shape[2]]
        each = (piece.sum((0, 1)), count.sum(0), torch.bincount(count.flatten(), minlength=piece.shape[2] + 1))
        old = (on, positions, per_token)
        on, positions, per_token = (a if b is None else a + b for a, b in zip(map(Tensor.cpu, each), old, strict=True))
    if on is None or not len(on) or not per_token.sum():
        raise ValueError("no neuron was heard: give at least one window of at least one token")
    together = torch.cat(windows)
    return Activity(on, together, positions.double() / len(on) / len(together), per_token)


@dataclass(frozen=True)
class Laziness:
    """How density runs over the depth of a model (Li et al. 2022, 2210.06313, Figures 1 and 2: the middle layers are
    lazier than the first, and the larger model lazier than the smaller).
    """

    layers: tuple[Score, ...]

    @property
    def mean(self) -> Score:
        """The mean density over layers, with Student's interval over them. Lower is better."""
        return Score(
            "density", mean(torch.tensor([s.value for s in self.layers], dtype=torch.float64)), higher_is_better=False
        )

    @property
    def slope(self) -> Score:
        """The change of density from the first layer to the last, by least squares, with Student's interval of the slope.

        Below 0: deeper layers are lazier. Lower is better.
        """
        y = torch.tensor([s.value for s in self.layers], dtype=torch.float64)
        if len(y) < 3:
            raise ValueError(f"{len(y)} layers: a slope with an interval needs at least 3")
        x = torch.linspace(-0.5, 0.5, len(y), dtype=torch.float64)
        steep = (x * y).sum() / x.square().sum()
        left = y - y.mean() - steep * x
        error = (left.square().sum() / (len(y) - 2) / x.square().sum()).sqrt().item()
        return Score("slope of density", _about(steep.item(), error, len(y)), higher_is_better=False)


def _about(value: float, error: float, n: int) -> Estimate:
    half = student(n - 2) * error
    return Estimate(value, value - half, value + half, n)
