"""What is measured of hidden neurons: planted answers, brute force, known curves."""

import math

import pytest
import torch

from fewer.measure import (
    Estimate,
    Laziness,
    activity,
    density_over_data,
    density_over_shape,
    mean,
    reads,
    reuse,
    set_recall,
    tail_cut,
    tail_error,
    tail_score,
    total,
    union_density,
)
from fewer.measure.estimate import Score
from fewer.measure.tail import on


def drawn(*shape, seed=0, p=0.3):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < p


def test_activity_counts_as_loops_do():
    pieces = [drawn(2, 7, 5), drawn(3, 7, 5, seed=1)]
    found, every = activity(pieces), torch.cat(pieces)
    assert found.tokens == 35
    for n in range(5):
        assert found.on[n] == sum(bool(every[w, t, n]) for w in range(5) for t in range(7))
    for t in range(7):
        assert found.positions[t] == pytest.approx(every[:, t].double().mean().item())
    assert found.density.value == pytest.approx(every.double().mean().item())
    assert not found.density.higher_is_better
    assert found.density.estimate == mean(every.double().mean((1, 2)))
    ranked = sorted(int(x.sum()) / 5 for x in every.flatten(0, 1))
    assert found.token_density(0.5) == ranked[math.ceil(0.5 * 35) - 1] and found.token_density(1) == ranked[-1]


def test_hot_and_cold_neurons_are_the_planted_ones():
    x = torch.zeros(1, 100, 10, dtype=torch.bool)
    x[:, :, :2] = True  # two neurons carry 200 of 204
    x[:, :4, 2] = True
    found = activity([x])
    assert found.hot(0.8) == 0.2 and found.hot(0.99) == 0.3
    assert found.cold(0.05).value == 0.8 and found.cold(0.04).value == 0.7  # 0.04 is not below 0.04
    assert found.cold().low < 0.7 < found.cold().high


def test_activity_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="no neuron was heard"):
        activity([])
    with pytest.raises(ValueError, match="windows of 3 tokens and 5 neurons beside 7 and 5"):
        activity([drawn(1, 7, 5), drawn(1, 3, 5)])


def test_lazier_with_depth_has_a_slope_below_zero():
    planted = [
        Score("density", Estimate(0.5 - 0.1 * i + e, 0.0, 1.0, 9), False) for i, e in enumerate([0.01, -0.01, 0.0, 0.0])
    ]
    found = Laziness(tuple(planted))
    from scipy.stats import linregress, t

    x, y = torch.linspace(-0.5, 0.5, 4), [s.value for s in planted]
    line = linregress(x, y)
    half = t.ppf(0.975, 2) * line.stderr
    assert found.slope.value == pytest.approx(line.slope) and found.slope.estimate.high == pytest.approx(
        line.slope + half, rel=1e-4
    )
    assert found.mean.value == pytest.approx(sum(y) / 4)
    with pytest.raises(ValueError, match="2 layers"):
        _ = Laziness(tuple(planted[:2])).slope


@pytest.mark.parametrize("apart", [1, 3])
def test_reuse_counts_as_sets_do(apart):
    x = torch.cat([drawn(2, 9, 6, p=0.5), drawn(1, 9, 6, seed=2)])
    sets = [[{n for n in range(6) if x[w, t, n]} for t in range(9)] for w in range(3)]
    pairs = [(s[t], s[t + apart]) for s in sets for t in range(9 - apart)]
    found = reuse([x[:2], x[2:]], apart)
    both, either = sum(len(a & b) for a, b in pairs), sum(len(a | b) for a, b in pairs)
    assert found.jaccard.value == pytest.approx(both / either)
    assert found.kept.value == pytest.approx(both / sum(len(b) for _, b in pairs))
    lengths = [len(r) for w in x for n in range(6) for r in "".join("x" if v else " " for v in w[:, n]).split()]
    assert found.run.value == pytest.approx(sum(lengths) / len(lengths))
    assert found.jaccard.higher_is_better and found.jaccard.estimate.low < found.jaccard.value


def test_neurons_without_memory_overlap_by_chance_alone():
    p = torch.tensor([0.9, 0.5, 0.1, 0.05]).expand(4, 3000, 4)
    found = reuse([torch.bernoulli(p, generator=torch.Generator().manual_seed(0)).bool()])
    assert found.jaccard.value == pytest.approx(found.chance, abs=0.02)
    same = drawn(4, 1, 50).expand(4, 30, 50)
    assert reuse([same]).jaccard.value == 1 and reuse([same]).chance < 0.9 and reuse([same]).run.value == 30


def test_reuse_refuses_what_is_too_short():
    with pytest.raises(ValueError, match="ask for 1 to 1"):
        reuse([drawn(1, 2, 3)], apart=2)
    with pytest.raises(ValueError, match="no neuron was on"):
        reuse([torch.zeros(1, 3, 3, dtype=torch.bool)])


def test_tail_error_is_the_length_of_what_is_left_out():
    make = torch.Generator().manual_seed(0)
    h, down = torch.randn(6, 8, generator=make), torch.randn(3, 8, generator=make)
    for t in range(6):
        weak = [i for i in range(8) if abs(h[t, i]) * down[:, i].norm() < 1.0]
        lost = sum((h[t, i] * down[:, i] for i in weak), torch.zeros(3))
        assert tail_error(h, down, 1.0)[t] == pytest.approx((lost.norm() / (down @ h[t]).norm()).item(), rel=1e-5)


def test_the_cut_is_the_largest_that_meets_the_error():
    make = torch.Generator().manual_seed(1)
    pieces = [torch.randn(2, 16, 32, generator=make) for _ in range(2)]
    down = torch.randn(8, 32, generator=make)
    cut = tail_cut(pieces, down, 0.2)
    every = torch.cat(pieces).flatten(0, 1)
    assert tail_error(every, down, cut).mean() <= 0.2
    sizes = (every.abs() * down.norm(dim=0)).flatten().sort().values
    next_cut = sizes[sizes > cut][3].item()  # three more are dropped
    assert tail_error(every, down, next_cut).mean() > 0.2
    assert tail_score(pieces, down, cut).value == pytest.approx(tail_error(every, down, cut).mean().item())
    lower = tail_cut(pieces, down, 0.05)
    assert lower < cut and on(every, down, lower).sum() > on(every, down, cut).sum()


def test_a_relu_costs_nothing_to_truncate():
    h = torch.tensor([[0.0, 0.0, 2.0, 1.0]])
    assert on(h, torch.eye(4), tail_cut([h], torch.eye(4), 0.1)).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("error", [0.0, 1.0, float("nan")])
def test_a_cut_refuses_an_error_that_is_no_share(error):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        tail_cut([torch.ones(1, 2)], torch.eye(2), error)


def test_a_cut_refuses_nan_and_silence():
    with pytest.raises(ValueError, match="NaN or infinite"):
        tail_cut([torch.tensor([[float("nan"), 1.0]])], torch.eye(2))
    with pytest.raises(ValueError, match="no token"):
        tail_cut([], torch.eye(2))


def test_the_law_that_made_the_points_is_found():
    x = [float(2**i) for i in range(20, 32)]
    noise = [1e-4 * (-1) ** i for i in range(12)]
    up = density_over_data(x, [0.42 - 0.02 * (d / x[-1]) ** -0.3 + e for d, e in zip(x, noise, strict=True)])
    down = density_over_data(
        x, [0.07 + math.exp(-0.5 - 2.5 * (d / x[-1]) ** 0.25) + e for d, e in zip(x, noise, strict=True)]
    )
    assert (
        up.form == "rising" and up.limit.low < 0.42 < up.limit.high and abs(up.coefficients["alpha"].value - 0.3) < 0.02
    )
    assert down.form == "falling" and down.limit.low < 0.07 < down.limit.high
    assert up(x[3]) == pytest.approx(0.42 - 0.02 * 2 ** (8 * 0.3), abs=1e-3) and down.r_squared > 0.999


def test_the_bottleneck_of_a_shape_is_found():
    x = [10, 20, 30, 45, 60, 80, 100, 120]
    law = density_over_shape(x, [0.3 + 0.002 * (min(r, 70) - 70) + 5e-4 * (-1) ** i for i, r in enumerate(x)])
    assert law.coefficients["bottleneck"].low < 70 < law.coefficients["bottleneck"].high
    assert law.coefficients["slope"].value == pytest.approx(0.002, rel=0.05)


def test_laws_refuse_what_is_no_density():
    with pytest.raises(ValueError, match="at least 5"):
        density_over_data([1, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="from 0 to 1"):
        density_over_shape([1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 1.5])


def test_bytes_that_a_token_reads():
    half, all_ = Estimate(0.5, 0.4, 0.6, 9), Estimate(1.0, 1.0, 1.0, 9)
    parts = [reads(half, 4, 8, torch.bfloat16), reads(all_, 4, 8, torch.int8, scales=4)]
    assert parts[0].read.value == 32 and parts[1].read.value == 32 + 16
    found = total(parts)
    assert (found.value, found.estimate.low, found.estimate.high) == pytest.approx((80, 25.6 + 48, 38.4 + 48))
    with pytest.raises(ValueError, match="no map"):
        total([])


def test_a_batch_reads_what_any_of_it_needs():
    keep = drawn(5, 3, 8)
    by_hand = [len({n for b in range(3) for n in range(8) if keep[s, b, n]}) / 8 for s in range(5)]
    assert union_density(keep).value == pytest.approx(sum(by_hand) / 5)


def test_recall_is_the_share_of_true_neurons_that_were_named():
    said, right = drawn(6, 10, p=0.5), drawn(6, 10, seed=3)
    right[0] = False  # a token that needs none tells nothing
    by_hand = [
        len([n for n in range(10) if said[t, n] and right[t, n]]) / int(right[t].sum())
        for t in range(1, 6)
        if right[t].any()
    ]
    assert set_recall(said, right).value == pytest.approx(sum(by_hand) / len(by_hand))
    with pytest.raises(ValueError, match="nothing to find"):
        set_recall(said, torch.zeros_like(right))
