"""One budget over layers, and budgets over time: exact arithmetic."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewer.core.budget import Budget, budget
from fewer.select import (
    Constant,
    Cosine,
    Cubic,
    Exponential,
    Linear,
    Steps,
    divide,
    er_weights,
    erk_weights,
    uniform_weights,
)

layers = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0.1, 0.3, 1, 1.5, 7, 1000])), min_size=1, max_size=6)
totals = st.sampled_from(["1%", "10%", "33%", "50%", "90%", "100%", "3 per model", "50% per layer", "7 per tensor"])


@settings(deadline=None, max_examples=60)
@given(layers, totals)
def test_the_total_is_exact_and_no_layer_is_emptied_or_overfull(layers, text):
    sizes, weights = [size for size, _ in layers], [weight for _, weight in layers]
    counts, total = divide(budget(text), sizes, weights), budget(text).of(sum(sizes))
    assert sum(counts) == total
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    assert total < len(sizes) or min(counts) >= 1


@settings(deadline=None, max_examples=60)
@given(layers, totals)
def test_shares_are_as_the_weights_but_for_rounding_and_the_ends(layers, text):
    """Against bisection in floating point for the c of clip(c w size, least, size)."""
    sizes, weights = [size for size, _ in layers], [weight for _, weight in layers]
    total = budget(text).of(sum(sizes))
    least = 1 if total >= len(sizes) else 0
    low, high = 0.0, 1e6
    for _ in range(80):
        c = (low + high) / 2
        quotas = [min(max(c * w * size, least), size) for size, w in layers]
        low, high = (c, high) if sum(quotas) < total else (low, c)
    quotas = [min(max(high * w * size, least), size) for size, w in layers]
    assert all(abs(n - q) < 1 + 1e-6 for n, q in zip(divide(budget(text), sizes, weights), quotas, strict=True))


def test_leftovers_go_to_the_largest_remainder_then_to_the_earlier_layer():
    assert divide(budget("5 per model"), [3, 3, 3], [1, 1, 1]) == [2, 2, 1]
    assert divide(budget("10 per model"), [4, 10, 6], [1, 1, 1]) == [2, 5, 3]
    assert divide(budget("4 per model"), [100, 10, 10], [1, 1, 1]) == [2, 1, 1]
    assert divide(budget("2 per model"), [5, 5, 5], [1, 1, 1]) == [1, 1, 0]


def test_equal_weights_are_what_each_layer_would_keep_alone():
    sizes = [64, 128, 1024]
    counts = divide(budget("25%"), sizes, uniform_weights([(1, s) for s in sizes]))
    assert counts == [budget("25%").of(s) for s in sizes]


def test_small_layers_keep_more_by_erdos_renyi():
    shapes = [(10, 10), (100, 100), (100, 10)]
    assert er_weights(shapes) == erk_weights(shapes) == [20 / 100, 200 / 10000, 110 / 1000]
    assert erk_weights([(8, 4, 3, 3)]) == [18 / 288] and er_weights([(8, 4, 3, 3)]) == [12 / 32]
    sizes = [100, 10000, 1000]
    assert divide(budget("10%"), sizes, erk_weights(shapes)) == [67, 673, 370]  # 1110 as 20 : 200 : 110
    assert divide(budget("20%"), sizes, erk_weights(shapes)) == [100, 1368, 752]  # 2120 as 200 : 110, one full


@pytest.mark.parametrize(
    "text, sizes, weights, words",
    [
        ("2:4", [4], [1.0], "no total to divide"),
        ("64", [100], [1.0], "no total to divide"),
        ("50%", [4, 4], [1.0], "2 sizes and 1 weights"),
        ("50%", [4], [0.0], "above zero"),
        ("50%", [4], [math.nan], "above zero"),
        ("50%", [4, 0], [1.0, 1.0], "at least one unit"),
    ],
)
def test_what_cannot_be_divided_is_refused(text, sizes, weights, words):
    with pytest.raises(ValueError, match=words):
        divide(budget(text), sizes, weights)


ALL, SOME = budget("100% of 2x2 per tensor"), budget("20% of 2x2 per tensor")


@pytest.mark.parametrize("shape", [Linear, Cubic, Cosine, Exponential])
def test_a_schedule_begins_and_ends_where_it_says_and_only_falls(shape):
    plan = shape(ALL, SOME, end=30, begin=10)
    budgets = [plan.at(t) for t in range(41)]
    assert set(budgets[:11]) == {ALL} and set(budgets[30:]) == {SOME}
    assert all(a.keep > b.keep for a, b in itertools.pairwise(budgets[10:31]))
    assert {(b.unit, b.scope) for b in budgets} == {((2, 2), "tensor")}


@pytest.mark.parametrize("t", range(1, 10))
def test_the_curves_are_their_formulas(t):
    a, b, x = Fraction(1), Fraction(1, 5), Fraction(t, 10)
    assert Linear(ALL, SOME, end=10).at(t).keep == a - (a - b) * x
    assert 1 - Cubic(ALL, SOME, end=10).at(t).keep == (1 - b) + (0 - (1 - b)) * (1 - x) ** 3  # as the paper: zeros
    assert math.isclose(Cosine(ALL, SOME, end=10).at(t).keep, 0.2 + 0.4 * (1 + math.cos(math.pi * t / 10)))
    assert math.isclose(Exponential(ALL, SOME, end=10).at(t).keep, 0.2 ** (t / 10))


def test_counts_and_patterns_have_schedules_too():
    assert [Linear(budget("64"), budget("8"), end=7).at(t).keep for t in range(8)] == [64, 56, 48, 40, 32, 24, 16, 8]
    assert [str(Linear(budget("4:4"), budget("2:4"), end=4).at(t)) for t in range(5)] == [
        "4:4",
        "3:4",
        "3:4",
        "2:4",
        "2:4",
    ]


def test_schedules_are_values_and_refuse_what_has_nothing_between():
    assert Cubic(ALL, SOME, end=9) == Cubic(ALL, SOME, end=9) and Constant(SOME).at(10**9) == SOME
    assert Steps(((5, ALL), (9, SOME))).at(0) == ALL and Steps(((5, ALL), (9, SOME))).at(9) == SOME
    for bad in (
        lambda: Linear(ALL, budget("20%"), end=9),
        lambda: Linear(ALL, budget("3 of 2x2 per tensor"), end=9),
        lambda: Linear(ALL, SOME, end=9, begin=9),
        lambda: Steps(()),
        lambda: Steps(((5, ALL), (5, SOME))),
    ):
        with pytest.raises(ValueError):
            bad()


def test_a_scheduled_budget_is_a_budget():
    assert isinstance(Cosine(ALL, SOME, end=10).at(3), Budget) and Cosine(ALL, SOME, end=10).at(5).of(100) == 60
