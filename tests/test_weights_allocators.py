"""Who divides a budget over the maps, and orders in which structures lose less: against closed forms and brute force."""

import itertools
import math

import numpy as np
import pytest
import tiny
import torch

import fewer
from fewer.calibrate import InputSquares, Stats, observe
from fewer.core import budget
from fewer.select import channel_order, row_order, select, select_in_order
from fewer.weights import Share
from fewer.weights.balanced import Balanced
from fewer.weights.ecoflap import Ecoflap
from fewer.weights.pyramidal import Pyramidal
from fewer.weights.sensitivity import Sensitivity

SHAPES = [(8, 8), (16, 40), (24, 40), (40, 48)]
SIZES = [r * c for r, c in SHAPES]


def shares(signals=(0.0, 0.0, 0.0, 0.0), layers=(0, 1, 1, 4)):
    rows = zip(SHAPES, layers, signals, strict=True)
    return [Share(f"m{i}", s, at, torch.tensor(x)) for i, (s, at, x) in enumerate(rows)]


def kept(m, text, given):
    return [b.keep for b in m.allocate(budget(text), given)]


# --- from shapes and depth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["5% per tensor", "30% per tensor", "90% per tensor"])
def test_balanced_maps_keep_the_same_number_as_long_as_they_have_it(text):
    found, left = kept(Balanced(), text, shares()), budget(text).of(sum(SIZES))
    expected = dict.fromkeys(range(4), 0.0)
    for i in sorted(range(4), key=lambda i: SIZES[i]):  # smallest first: it takes an equal part, or all that it has
        expected[i] = min(SIZES[i], left / (4 - len([j for j in expected if expected[j]])))
        left -= expected[i]
    assert all(abs(k - expected[i]) <= 1 for i, k in enumerate(found))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_pyramidal_shares_are_powers_of_the_root_of_the_budgets_polynomial(share):
    """Of sum n_l r^l = share * n, the blocks counted as they are pruned: 0, 1 and 4 are the first three."""
    blocks = [SIZES[0], SIZES[1] + SIZES[2], SIZES[3]]
    roots = np.roots([*blocks[::-1], -share * sum(SIZES)])
    (r,) = [z.real for z in roots if abs(z.imag) < 1e-9 and 0 < z.real <= 1]
    expected = [n * r**depth for n, depth in zip(SIZES, (1, 2, 2, 3), strict=True)]
    assert np.allclose(kept(Pyramidal(), f"{share:.0%} per tensor", shares()), expected, atol=1)


def test_maps_outside_the_blocks_count_as_the_first_block():
    inside, outside = Share("a", (10, 10), 3), Share("head", (10, 10), None)
    deep = Share("b", (10, 10), 7)
    assert kept(Pyramidal(), "50% per tensor", [inside, outside, deep])[:2] == [58, 58]  # 2 r + r^2 = 1.5


# --- from the loss -----------------------------------------------------------------------------------------------


def test_ecoflap_feels_how_long_the_gradient_is():
    make = torch.Generator().manual_seed(0)
    for scale in (0.1, 3.0):
        gradient = scale * torch.randn(6, 9, generator=make)
        felt = Ecoflap(draws=600).sense(torch.randn(6, 9), Stats(), lambda v, g=gradient: (v * g).sum().item())
        assert felt.item() == pytest.approx(math.sqrt(2 / math.pi) * gradient.norm().item(), rel=0.1)


def test_ecoflap_takes_a_difference_so_that_curvature_is_not_felt():
    w = torch.randn(4, 4)
    assert Ecoflap().sense(w, Stats(), lambda v: (v - w).square().sum().item() + 7).item() < 1e-6


def test_ecoflap_gives_the_floor_and_divides_the_rest_by_blocks():
    """At 30 %: 20 % everywhere; of the 10 % of all weights that are left, each block gets as its maps' sum says."""
    felt, rest = (1.0, 2.0, 1.0, 4.0), 0.1 * sum(SIZES)
    block = [1.0, 3.0, 3.0, 4.0]
    size = [SIZES[0], SIZES[1] + SIZES[2], SIZES[1] + SIZES[2], SIZES[3]]
    more = [rest * b / 8 / n for b, n in zip(block, size, strict=True)]
    if more[0] > 0.8:  # the first is full; the others share what it cannot take
        more = [0.8, *((rest - 0.8 * SIZES[0]) * b / 7 / n for b, n in zip(block[1:], size[1:], strict=True))]
    expected = [n * (0.2 + m) for n, m in zip(SIZES, more, strict=True)]
    assert np.allclose(kept(Ecoflap(), "30% per tensor", shares(felt)), expected, atol=2)


def test_ecoflap_starves_nobody_where_little_stays_and_survives_a_loss_that_feels_nothing():
    few = kept(Ecoflap(), "5% per tensor", shares((0.0, 0.0, 0.0, 9.0)))
    assert sum(few) == sum(SIZES) // 20 and min(k / n for k, n in zip(few, SIZES, strict=True)) >= 0.004
    assert sum(kept(Ecoflap(), "50% per tensor", shares())) == sum(SIZES) // 2


def test_sensitivity_measures_what_the_loss_rises_by_without_the_rest():
    w, x = torch.randn(6, 8), torch.randn(50, 8) * torch.arange(1.0, 9.0)
    stats = observe((InputSquares,), w, x)
    rank = (w.double().abs() * x.double().square().mean(0).sqrt()).argsort(1)
    gone = w.clone().scatter_(1, rank[:, :6], 0.0)  # 25 % of 8 stay
    rise = (gone - w).abs().sum().item()
    found = Sensitivity(probe="25%").sense(w, stats, lambda v: 3 + (v - w).abs().sum().item())
    assert found.item() == pytest.approx(rise, rel=1e-5)


def test_sensitivitys_shares_lose_less_than_any_others():
    """Of sum s_i (1 / d_i - 1) at equal total: every exchange of weights between two maps makes it worse."""
    rises = (0.5, 0.1, 0.02, 0.3)
    found = kept(Sensitivity(), "20% per tensor", shares(rises))

    def loss(counts):
        return sum(s * (n / k - 1) for s, n, k in zip(rises, SIZES, counts, strict=True))

    assert sum(found) == budget("20%").of(sum(SIZES))
    for i, j in itertools.permutations(range(4), 2):
        other = list(found)
        other[i], other[j] = other[i] + 5, other[j] - 5
        assert other[i] > SIZES[i] or loss(other) > loss(found)  # a full map can take no more


def test_a_map_that_is_not_missed_keeps_a_little_and_if_none_is_all_keep_alike():
    few = kept(Sensitivity(), "30% per tensor", shares((1.0, 1.0, -0.2, 1.0)))
    assert 0 < few[2] < 0.2 * SIZES[2]
    assert kept(Sensitivity(), "25% per tensor", shares((0.0, -1.0, 0.0, -0.1))) == [n // 4 for n in SIZES]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("by", ["sensitivity", "ecoflap", "pyramidal", "balanced"])
def test_a_model_keeps_exactly_the_total_and_is_put_back(family, by):
    model, data = tiny.build(family), tiny.batch(family)["input_ids"]
    before = [p.clone() for p in model.parameters()]
    with fewer.apply(model, f"weights/wanda 40% per tensor by {by} @ mlp,attention", data) as applied:
        sizes = [c.bytes_before // 4 for c in applied.changes]
        stay = [round(c.kept * n) for c, n in zip(applied.changes, sizes, strict=True)]
        assert sum(stay) == budget("40%").of(sum(sizes)) and len({round(c.kept, 3) for c in applied.changes}) > 1
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("name", ["snip", "taylor", "grasp"])
def test_gradient_scores_prune_every_family(family, name):
    model, data = tiny.build(family), tiny.batch(family)["input_ids"]
    with fewer.apply(model, f"weights/{name} 50%", data) as applied:
        assert all(c.kept == pytest.approx(0.5) for c in applied.changes)


# --- orders ------------------------------------------------------------------------------------------------------


def hidden(groups, height, cols, seed=0):
    """Rows that share their needs in secret groups, shuffled."""
    make = torch.Generator().manual_seed(seed)
    base = (torch.rand(groups, cols, generator=make) < 0.5).float().repeat_interleave(height, 0)
    score = base + 0.1 * torch.rand(groups * height, cols, generator=make)
    return score[torch.randperm(groups * height, generator=make)]


def inside(score, text, order=None):
    return (score * select_in_order(score, budget(text), rows=order)).sum().item()


@pytest.mark.parametrize("text", ["50% of 4x1", "50% of 4x1 per tensor"])
def test_rows_that_need_the_same_find_each_other(text):
    score = hidden(8, 4, 32)
    plain, ordered = inside(score, text), inside(score, text, row_order(score, budget(text)))
    free = (score * select(score, budget("50% per tensor"))).sum().item()
    assert ordered > plain + 0.8 * (free - plain)


def test_two_rows_to_a_tile_are_paired_nearly_as_well_as_can_be():
    for seed in range(2):
        score = torch.rand(6, 4, generator=torch.Generator().manual_seed(seed))
        every = [inside(score, "50% of 2x1", torch.tensor(p)) for p in itertools.permutations(range(6))]
        found = inside(score, "50% of 2x1", row_order(score, budget("50% of 2x1")))
        assert found >= every[0] - 1e-6 and found >= max(every) - 0.5 * (max(every) - min(every))


def test_an_order_of_rows_holds_every_row_once_and_never_loses():
    for seed, (rows, height) in itertools.product(range(3), [(12, 4), (20, 2), (16, 16), (40, 8)]):
        score = torch.rand(rows, 10, generator=torch.Generator().manual_seed(seed))
        text = f"30% of {height}x1"
        order = row_order(score, budget(text))
        assert order.sort().values.tolist() == list(range(rows))
        assert inside(score, text, order) >= inside(score, text) - 1e-5


def test_kept_tiles_are_whole_in_the_new_order_and_counted_in_the_old():
    score, text = hidden(4, 8, 20), budget("25% of 8x1")
    order = row_order(score, text)
    keep = select_in_order(score, text, rows=order)
    tiles = keep[order].reshape(4, 8, 20)
    assert torch.equal(tiles.all(1), tiles.any(1)) and (keep.sum(1) == 5).all()


@pytest.mark.parametrize("text, kept_of", [("2:4", 2), ("1:4", 1), ("3:4", 3)])
def test_columns_of_n_of_m_are_spread(text, kept_of):
    make = torch.Generator().manual_seed(1)
    score = torch.rand(12, 32, generator=make) * torch.arange(32, 0, -1)  # the large ones stand side by side
    order = channel_order(score, budget(text))
    assert order.sort().values.tolist() == list(range(32))
    keep = select_in_order(score, budget(text), columns=order)
    assert (keep[:, order].reshape(12, 8, 4).sum(-1) == kept_of).all()
    plain, free = (score * select(score, budget(text))).sum(), (score * select(score, budget(f"{kept_of * 25}%"))).sum()
    assert (score * keep).sum() > plain + 0.7 * (free - plain)


def test_the_best_order_of_columns_is_found_where_one_can_look_at_all():
    for seed in range(2):
        score = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed))
        every = [
            (score * select_in_order(score, budget("1:2"), columns=torch.tensor(p))).sum().item()
            for p in itertools.permutations(range(6))
        ]
        order = channel_order(score, budget("1:2"), rounds=3)
        found = (score * select_in_order(score, budget("1:2"), columns=order)).sum().item()
        assert found >= every[0] - 1e-6 and found >= max(every) - 0.34 * (max(every) - min(every))


def test_there_is_nothing_to_order_in_single_rows_full_groups_or_other_budgets():
    score = torch.rand(8, 8)
    assert row_order(score, budget("50%")).tolist() == channel_order(score, budget("4:4")).tolist() == list(range(8))
    with pytest.raises(ValueError, match=r"'50%': channels are permuted for N:M"):
        channel_order(score, budget("50%"))
    with pytest.raises(ValueError, match="does not divide into units"):
        row_order(score, budget("50% of 3x1"))
