"""Gates that break one rule each; tests/test_broken.py looks whether the rule notices."""

from dataclasses import dataclass

import torch
from broken import broken

from fewer import activations
from fewer.calibrate.held import NONE, Held
from fewer.select import select


@broken("activations", "check_one_token_decides_alone")
class LooksAround(activations.ByScore):
    """Rank by the size relative to all tokens."""

    def score(self, x, stats):
        return x.abs() - x.abs().flatten(0, -2).amax(0)


@broken("activations", "check_all_is_the_identity")
class AddsToAll(activations.ByScore):
    """Say something of inputs that were all kept."""

    def score(self, x, stats):
        return x.abs()

    def rest(self, x, budget, stats):
        return x


class Remembers(activations.Remembering):
    """What the broken below share, in order: the last token heard."""

    def begin(self, x, budget, stats):
        return x[..., -1, :].clone()

    def next(self, x, memory, budget, stats):
        keep = select((x - memory).abs(), budget)
        return keep, x.where(keep, memory), x.where(keep, memory)


@broken("activations", "check_remembers_within_the_budget")
class HearsNothing(Remembers):
    """Forget what was computed as well."""

    def next(self, x, memory, budget, stats):
        keep = select((x - memory).abs(), budget)
        return keep, memory, x


@broken("activations", "check_a_sequence_decides_alone")
class HearsTheOthers(Remembers):
    """Remember the mean of the batch."""

    def begin(self, x, budget, stats):
        return x[..., -1, :].mean(0, keepdim=True).expand_as(x[..., -1, :])


@broken("activations", "check_beats_random_in_a_text")
class HearsTheSame(Remembers):
    """Compute what changed least, and forget the rest."""

    def next(self, x, memory, budget, stats):
        keep = select(-x.abs(), budget)
        return keep, x.where(keep, -x), memory


@dataclass(frozen=True)
class Predicts(activations.Predictor):
    """What the broken below share, in order: a linear map."""

    file: str = ""
    parts: Held = NONE

    def begin(self, reads, neurons, make):
        return {"w": torch.randn(neurons, reads, generator=make)}

    def score(self, x, stats):
        return x @ self.part("w", x).mT


@broken("activations", "check_finds_more_than_random")
class LearnsTheReverse(Predicts):
    """Be taught who does not matter."""

    def loss(self, x, right):
        return super().loss(x, ~right)


@broken("activations", "check_names_the_budget")
class NamesTooMany(Predicts):
    """Name whoever is likelier than not."""

    def gate(self, x, budget, stats):
        return self.score(x, stats) > 0


@broken("activations", "check_says_what_it_reads")
class ReadsForNothing(Predicts):
    """Count no number of the predictor."""

    def always(self, rows, cols, budget):
        return 0
