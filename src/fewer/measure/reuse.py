"""Whether the next token needs the same neurons: overlap of neighbours, and for how long a neuron stays on."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .estimate import Score, ratio


@dataclass(frozen=True, eq=False)
class Reuse:
    """Counts per window; made by `reuse`. All scores have the interval of a quotient of sums over windows."""

    both: Float[Tensor, " windows"]  # neurons on at a token and `apart` tokens later, summed over such pairs
    either: Float[Tensor, " windows"]
    later: Float[Tensor, " windows"]  # neurons on at the second token of a pair
    on: Float[Tensor, " windows"]
    runs: Float[Tensor, " windows"]
    count: Int[Tensor, " neurons"]
    tokens: int

    @property
    def jaccard(self) -> Score:
        """Neurons on at both tokens over those on at either: 1 is the same set each time. Higher is better."""
        return Score("jaccard", ratio(self.both, self.either), higher_is_better=True)

    @property
    def kept(self) -> Score:
        """The share of a token's neurons that were on already: what need not be fetched (ReLU^2 Wins, section 4.3).
        Higher is better.
        """
        return Score("reused", ratio(self.both, self.later), higher_is_better=True)

    @property
    def run(self) -> Score:
        """The mean number of tokens in a row at which a neuron stays on. Higher is better."""
        return Score("run length", ratio(self.on, self.runs), higher_is_better=True)

    @property
    def chance(self) -> float:
        """The Jaccard overlap of two tokens that have nothing to do with each other, each neuron being as frequent as it
        is: `sum p^2 / sum (2 p - p^2)`. Hot neurons overlap by themselves; what lies above is reuse.
        """
        p = self.count.double() / self.tokens
        return float(p.square().sum() / (2 * p - p.square()).sum())


def reuse(pieces: Iterable[Bool[Tensor, "_ length neurons"]], apart: int = 1) -> Reuse:
    """How alike the active sets of tokens are that stand `apart` tokens from each other in the same window.

    ValueError: windows too short, none, or no neuron on in any of them.

    >>> on = torch.tensor([[[True, False], [True, True], [False, True]]])
    >>> found = reuse([on])  # pairs {0}-{0, 1} and {0, 1}-{1}: 1 + 1 of 2 + 2; runs of 2 and 2
    >>> found.jaccard.value, found.kept.value, found.run.value
    (0.5, 0.666..., 2.0)
    """
    found: list[tuple[Tensor, ...]] = []
    count, tokens = None, 0
    for piece in pieces:
        if piece.shape[1] <= apart or apart < 1:
            raise ValueError(f"tokens {apart} apart in windows of {piece.shape[1]}: ask for 1 to {piece.shape[1] - 1}")
        first, second = piece[:, :-apart], piece[:, apart:]
        begins = piece[:, 1:] & ~piece[:, :-1]
        each = ((first & second), (first | second), second, piece)
        sums = [x.sum((1, 2)).double().cpu() for x in each]
        runs = (begins.sum((1, 2)) + piece[:, 0].sum(-1)).double().cpu()
        found.append((*sums, runs))
        here = piece.sum((0, 1)).cpu()
        count, tokens = here if count is None else count + here, tokens + piece.shape[0] * piece.shape[1]
    if count is None or not count.any():
        raise ValueError("no neuron was on: there is nothing to use again")
    both, either, later, on, runs = map(torch.cat, zip(*found, strict=True))
    return Reuse(both, either, later, on, runs, count, tokens)
