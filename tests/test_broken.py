"""The checks are checked: each broken thing must be caught, and by the check that is named."""

import dataclasses
from dataclasses import replace
from fractions import Fraction

import broken_activations  # noqa: F401, its classes name themselves
import broken_attention  # noqa: F401
import broken_quantisers  # noqa: F401
import broken_slimmers  # noqa: F401
import pytest
import torch
from broken import BROKEN, broken

from fewer import experts, features, weights
from fewer.calibrate import GradMean, Gram, HessianGradient, InputSquares
from fewer.select import select
from fewer.testing import checks_of
from fewer.testing.weights import CHECKS


@broken("weights", "check_beats_random")
class KeepsTheWorst(weights.ByScore):
    """Rank upside down."""

    def score(self, w, stats):
        return -w.abs()


@broken("weights", "check_beats_random")
class FollowsTheGradientUphill(weights.ByScore):
    """Keep the weights that a step of gradient descent makes smaller."""

    needs = (GradMean,)

    def score(self, w, stats):
        return w * stats[GradMean].value


@broken("weights", "check_beats_random")
class StopsTheFlow(weights.ByScore):
    """Take GraSP's score, which says what to remove, for what to keep."""

    needs = (HessianGradient,)

    def score(self, w, stats):
        return -w * stats[HessianGradient].value


@broken("weights", "check_says_what_was_not_learnt")
class GuessesWhatItDidNotLearn(weights.Learnt):
    """Keep the first two of four where nothing was learnt."""

    files = ()

    def at(self, site, budget):
        return torch.tensor([True, True, False, False]).repeat(site.shape[0], site.shape[1] // 4)


@broken("weights", "check_budget")
class KeepsOneMore(weights.Pruner):
    """Count from zero."""

    def prune(self, w, budget, stats):
        keep = select(w.abs(), budget)
        keep[:, 0] = True
        return w * keep, keep


@broken("weights", "check_budget")
class ForgetsToZero(weights.ByScore):
    """Report a mask that the weights do not follow."""

    def score(self, w, stats):
        return w.abs()

    def prune(self, w, budget, stats):
        return w, select(w.abs(), budget)


@broken("weights", "check_budget")
class RanksEachRow(weights.Pruner):
    """Take `per tensor` and `per column` for `per row`."""

    def prune(self, w, budget, stats):
        keep = select(w.abs(), replace(budget, scope="row"))
        return w * keep, keep


@broken("weights", "check_structure")
class IgnoresGroups(weights.Pruner):
    """Keep N / M of a row, wherever they are."""

    def prune(self, w, budget, stats):
        share = Fraction(budget.keep, budget.group) if budget.group else budget.keep
        keep = select(w.abs(), replace(budget, keep=share, group=0))
        return w * keep, keep


@broken("weights", "check_structure")
class IgnoresUnits(weights.Pruner):
    """Keep the right number, one by one."""

    def prune(self, w, budget, stats):
        keep = select(w.abs(), replace(budget, unit=(1, 1)))
        return w * keep, keep


@broken("weights", "check_refuses_what_cannot_be")
class DoesWhatItCan(weights.Pruner):
    """Where the budget does not fit, keep everything."""

    def prune(self, w, budget, stats):
        try:
            keep = select(w.abs(), budget)
        except ValueError:
            keep = torch.ones_like(w, dtype=torch.bool)
        return w * keep, keep


@broken("weights", "check_refuses_what_cannot_be")
class RefusesInRiddles(weights.Pruner):
    """Say only that something is wrong."""

    def prune(self, w, budget, stats):
        try:
            keep = select(w.abs(), budget)
        except ValueError:
            raise ValueError("bad budget") from None
        return w * keep, keep


@broken("weights", "check_everything_is_identity")
class AlwaysShrinks(weights.Pruner):
    """Pull the survivors towards zero, even if all survive."""

    def prune(self, w, budget, stats):
        keep = select(w.abs(), budget)
        return w * keep * 0.999, keep


@broken("weights", "check_dtypes")
class Upcasts(weights.Pruner):
    """Return float32 whatever came in."""

    def prune(self, w, budget, stats):
        keep = select(w.abs(), budget)
        return w.float() * keep, keep


@broken("weights", "check_pure")
class WritesItsArgument(weights.Pruner):
    """Prune in place."""

    def prune(self, w, budget, stats):
        keep = select(w.abs(), budget)
        return w.mul_(keep), keep


@broken("weights", "check_pure")
class WritesItsStatistics(weights.Pruner):
    """Damp the Gram matrix in place, as the next method will notice."""

    needs = (Gram,)

    def prune(self, w, budget, stats):
        keep = select(w.abs(), budget)
        stats[Gram].value.diagonal().add_(1)
        return w * keep, keep


@broken("weights", "check_pure")
class RollsDice(weights.Pruner):
    """Break ties at random, from the global generator."""

    def prune(self, w, budget, stats):
        keep = select(torch.rand(w.shape), budget)
        return w * keep, keep


@broken("weights", "check_dead_input")
class DividesByTheInput(weights.Pruner):
    """Scale survivors by the loudness of their input over itself, and meet 0 / 0."""

    needs = (InputSquares,)

    def prune(self, w, budget, stats):
        keep = select(w.abs(), budget)
        return w * keep * (stats[InputSquares].rms / stats[InputSquares].rms), keep


@broken("weights", "check_rule_and_paper")
class Nameless(weights.ByScore):
    """todo"""

    def score(self, w, stats):
        return w.abs()


@broken("weights", "check_is_a_value")
class KeepsAList(weights.ByScore):
    """Hold a field that no two methods share.

    Its representation cannot be read back.
    """

    inner: object = dataclasses.field(default_factory=object)

    def score(self, w, stats):
        return w.abs()


@broken("weights", "check_worked_example")
class AddsInsteadOfMultiplies(weights.ByScore):
    """Rank by |w| * 2, or so it says.

    >>> AddsInsteadOfMultiplies().score(torch.tensor([[3.0]]), None)
    tensor([[6.]])
    """

    def score(self, w, stats):
        return w.abs() + 2


@broken("weights", "check_worked_example")
class ShowsNothing(weights.ByScore):
    """Rank by size, without an example."""

    def score(self, w, stats):
        return w.abs()


class Grower(weights.Corrector):
    """What a corrector does that brings back the pruned weights that are loudest; leaves break it."""

    needs = (InputSquares,)

    def swapped(self, w, pruned, stats, price=None):
        loud = w.abs() * stats[InputSquares].rms
        keep = select(loud if price is None else price, pruned.budget)
        return replace(pruned, weight=w * keep, keep=keep)


@broken("weights", "check_budget_still_holds")
class BringsOneBack(Grower):
    """Grow, and forget to drop."""

    def correct(self, w, pruned, stats):
        keep = pruned.keep.clone()
        keep[:, 0] = True
        return replace(pruned, weight=w * keep, keep=keep)


@broken("weights", "check_budget_still_holds")
class CrossesGroups(Grower):
    """Swap inside a row, wherever the groups are."""

    def correct(self, w, pruned, stats):
        keep = select(w.abs() * stats[InputSquares].rms, replace(pruned.budget, keep=Fraction(1, 2), group=0))
        return replace(pruned, weight=w * keep, keep=keep) if pruned.budget.group else pruned


@broken("weights", "check_budget_still_holds")
class TearsUnits(Grower):
    """Swap single weights where units were kept."""

    def correct(self, w, pruned, stats):
        return self.swapped(w, replace(pruned, budget=replace(pruned.budget, unit=(1, 1))), stats)


@broken("weights", "check_nothing_lost_is_identity")
class ShrinksAll(Grower):
    """Rescale the survivors by a constant."""

    def correct(self, w, pruned, stats):
        return replace(pruned, weight=pruned.weight * 1.01)


@broken("weights", "check_corrects_purely")
class WritesTheMask(Grower):
    """Move the mask that it was given."""

    def correct(self, w, pruned, stats):
        pruned.keep.copy_(self.swapped(w, pruned, stats).keep)
        return replace(pruned, weight=w * pruned.keep)


@broken("weights", "check_corrects_purely")
class Gambles(Grower):
    """Choose at random, from the global generator."""

    def correct(self, w, pruned, stats):
        return self.swapped(w, pruned, stats, torch.rand(w.shape))


@broken("weights", "check_corrected_dtypes")
class WidensFactors(Grower):
    """Add a low-rank part in float32 to a map in half precision."""

    def correct(self, w, pruned, stats):
        return replace(pruned, low_rank=(torch.zeros(len(w), 1), torch.zeros(1, w.shape[1])))


@broken("weights", "check_corrected_dtypes")
class WidensTheBias(Grower):
    """Add a bias in float32 to a map in half precision."""

    def correct(self, w, pruned, stats):
        return replace(pruned, bias=torch.zeros(len(w)))


@broken("weights", "check_helps")
class LeansTheWrongWay(Grower):
    """Add a bias that is nobody's."""

    def correct(self, w, pruned, stats):
        return replace(pruned, bias=torch.ones_like(w[:, 0]))


@broken("weights", "check_helps")
class Placebo(Grower):
    """Do nothing."""

    def correct(self, w, pruned, stats):
        return pruned


@broken("weights", "check_helps")
class KeepsTheQuiet(Grower):
    """Swap in the quietest."""

    def correct(self, w, pruned, stats):
        return self.swapped(w, pruned, stats, -w.abs() * stats[InputSquares].rms)


class Uneven(weights.ByWeight):
    """Weigh by the number of rows; leaves break it."""

    def signal(self, w, stats):
        return torch.tensor(float(len(w)))

    def weigh(self, budget, shares):
        return [float(s.signal) for s in shares]


@broken("weights", "check_total")
class RoundsUp(Uneven):
    """Give every map one more."""

    def allocate(self, budget, shares):
        return [replace(b, keep=b.keep + 1) for b in super().allocate(budget, shares)]


@broken("weights", "check_total")
class ForgetsTheScope(Uneven):
    """Count over the whole map what was to be counted in rows."""

    def allocate(self, budget, shares):
        return super().allocate(replace(budget, scope="tensor") if budget.scope == "row" else budget, shares)


@broken("weights", "check_total")
class ForgetsTheRemainder(Uneven):
    """Drop what whole rows leave over."""

    def allocate(self, budget, shares):
        even = super().allocate(budget, shares)
        return [replace(b, keep=max(1, b.keep - 1)) if b.scope == "row" else b for b in even]


@broken("weights", "check_full_budget_is_full")
class NeverFull(Uneven):
    """Keep nine tenths at most."""

    def allocate(self, budget, shares):
        each = super().allocate(budget, shares)
        return [replace(b, keep=min(b.keep, s.shape[1] * 9 // 10)) for b, s in zip(each, shares, strict=True)]


@broken("weights", "check_one_map_gets_all")
class HalvesForOne(Uneven):
    """Leave half for other maps, though there are none."""

    def allocate(self, budget, shares):
        each = super().allocate(budget, shares)
        return each if len(each) > 1 else [replace(each[0], keep=each[0].keep // 2)]


@broken("weights", "check_order_is_irrelevant")
class FirstComeFirstServed(Uneven):
    """Give the maps named first more."""

    def weigh(self, budget, shares):
        return [1 / (1 + i) for i in range(len(shares))]


@broken("weights", "check_allocates_purely")
class DoublesSignals(Uneven):
    """Work on the signals in place."""

    def weigh(self, budget, shares):
        return [float(s.signal.mul_(1 + i)) for i, s in enumerate(shares)]


@broken("weights", "check_refuses_what_has_no_total")
class DividesAnything(Uneven):
    """Hand out N:M as it is."""

    def allocate(self, budget, shares):
        return [budget for _ in shares]


@broken("weights", "check_not_uniform")
class TreatsAllAlike(Uneven):
    """Weigh every map the same."""

    def weigh(self, budget, shares):
        return [1.0 for _ in shares]


@broken("weights", "check_not_uniform")
class DoesNotListen(Uneven):
    """Be given the loss, and ask it the same thing of every map."""

    def sense(self, w, stats, loss):
        return torch.tensor(1.0 + 0 * loss(w))


@broken("experts", "check_gradient")
class Deaf(experts.Router):
    """Route well, learn nothing."""

    def route(self, logits, budget):
        keep = select(logits, budget)
        return keep, logits.detach().softmax(-1) * keep


@broken("features", "check_gradient")
class StraightThrough(features.Sparsifier):
    """Let gradients reach the silent."""

    def code(self, pre, budget, own=None):
        z = pre.relu() * select(pre, budget)
        return pre + (z - pre).detach()


@pytest.mark.parametrize("cls, by", BROKEN)
def test_caught(cls, by):
    torch.manual_seed(0)
    check = {c.__name__: c for c in checks_of(cls)}[by]
    with pytest.raises((AssertionError, SyntaxError)):
        check(cls())


def test_every_check_of_weights_catches_something():
    caught = {by for cls, by in (p.values for p in BROKEN) if cls.name.startswith("weights/")}
    others = (checks for verb, checks in CHECKS.items() if verb is not weights.Quantiser)  # test_broken_quantisers.py
    assert caught >= {check.__name__ for checks in others for check in checks}
    assert caught >= {"check_rule_and_paper", "check_is_a_value", "check_worked_example"}
