"""The checks are checked: each broken thing must be caught, and by the check that is named."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
import triton
import triton.language as tl

from fewer import activations, attention, experts, features, weights
from fewer.core import Paper, method
from fewer.select import select
from fewer.testing import checks_of
from fewer.testing.interpret import KernelError, watch

PAPER = Paper("0000.00000", "Nowhere", 2026)


def broken(axis, by):
    """Mark a method as broken and say which check must say so."""

    def wrap(cls):
        cls.__module__ = f"fewer.{axis}.broken"
        BROKEN.append(pytest.param(method(PAPER)(cls), axis, by, id=f"{cls.__name__}-{by}"))
        return cls

    return wrap


BROKEN: list = []


@broken("weights", "check_beats_random")
class KeepsTheWorst(weights.ByScore):
    """Rank upside down."""

    def score(self, w, stats):
        return -w.abs()


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


@broken("weights", "check_rule_and_paper")
class Nameless(weights.ByScore):
    """todo"""

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


@broken("activations", "check_one_token_decides_alone")
class LooksAround(activations.ByScore):
    """Rank by the size relative to all tokens."""

    def score(self, x, stats):
        return x.abs() - x.abs().flatten(0, -2).amax(0)


@broken("attention", "check_causal")
class Clairvoyant(attention.Pattern):
    """Read the future."""

    block: int = 16

    def attend(self, q, k, budget):
        b, h, n, _ = q.shape
        return torch.ones(b, h, n // 16, k.shape[2] // 16, dtype=torch.bool)


@broken("attention", "check_decoding")
class CountsFromTheFront(attention.ByScore):
    """Score by the row's number, so one query at the end is taken for the first."""

    block: int = 16

    def score(self, q, k):
        rows, cols = q.shape[2] // 16, k.shape[2] // 16
        return (torch.arange(cols) - torch.arange(rows)[:, None]).abs().float().expand(*q.shape[:2], rows, cols)


@broken("experts", "check_gradient")
class Deaf(experts.Router):
    """Route well, learn nothing."""

    def route(self, logits, budget):
        keep = select(logits, budget)
        return keep, logits.detach().softmax(-1) * keep


@broken("features", "check_gradient")
class StraightThrough(features.Sparsifier):
    """Let gradients reach the silent."""

    def code(self, pre, budget):
        z = pre.relu() * select(pre, budget)
        return pre + (z - pre).detach()


@pytest.mark.parametrize("cls, axis, by", BROKEN)
def test_caught(cls, axis, by):
    check = {c.__name__: c for c in checks_of(axis)}[by]
    with pytest.raises(AssertionError):
        check(cls())


def test_every_axis_check_of_weights_catches_something():
    named = {p.values[2] for p in BROKEN if p.values[1] == "weights"}
    assert named >= {c.__name__ for c in checks_of("weights")} - {"check_is_a_value", "check_everything_is_identity"}


@triton.jit
def _no_mask(x, y, n, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(y + i, tl.load(x + i), mask=i < n)


@triton.jit
def _race(x, y, n, TILE: tl.constexpr):
    i = tl.arange(0, TILE)
    tl.store(y + i, tl.load(x + i, mask=i < n) + tl.program_id(0), mask=i < n)


@triton.jit
def _before(x, y, n, TILE: tl.constexpr):
    i = tl.program_id(0) * TILE + tl.arange(0, TILE) - 1
    tl.store(y + i + 1, tl.load(x + i, mask=i < n), mask=i + 1 < n)


@pytest.mark.parametrize(
    "kernel, word", [(_no_mask, "reads outside"), (_race, "write the same"), (_before, "reads outside")]
)
def test_watch_catches(kernel, word):
    whole = torch.arange(64.0)
    x, y = whole[10:17], torch.zeros(7)  # neighbours exist: without `watch` nothing would be seen
    kernel[(2,)](x, y, 7, TILE=4)
    with pytest.raises((KernelError, Exception), match=word), watch(x, y):
        kernel[(2,)](x, y, 7, TILE=4)


def test_watch_shows_a_hole():
    @triton.jit
    def half(x, y, n, TILE: tl.constexpr):
        i = tl.arange(0, TILE)
        tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n - 1)

    x = torch.ones(4)
    with watch(x):
        y = torch.empty(4)
        half[(1,)](x, y, 4, TILE=4)
    assert y.isnan().any()
