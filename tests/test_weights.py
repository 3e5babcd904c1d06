"""The weights methods against independent truths: literal float64 loops, closed forms, pencil and paper."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from fewer.calibrate import Gram, InputMean, InputSquares, InputVariance, Stats, inverse_root, observe
from fewer.core import budget
from fewer.select import select
from fewer.weights import Pruned, Share
from fewer.weights.dsnot import Dsnot
from fewer.weights.eora import Eora
from fewer.weights.erk import Erk
from fewer.weights.magnitude import Magnitude
from fewer.weights.owl import Owl
from fewer.weights.random import Random
from fewer.weights.sparse_gpt import SparseGpt
from fewer.weights.wanda import Wanda


def layer(rows=6, cols=24, tokens=200, seed=0, mean=0.0, loud=1.0):
    """Weights and correlated inputs of uneven loudness."""
    make = torch.Generator().manual_seed(seed)
    mix = torch.eye(cols) + 0.5 * torch.randn(cols, cols, generator=make) / cols**0.5
    x = torch.randn(tokens, cols, generator=make) @ mix * (loud * torch.randn(cols, generator=make)).exp()
    return torch.randn(rows, cols, generator=make), x + mean * torch.randn(cols, generator=make)


def output_error(w, new, x):
    return ((w - new).double() @ x.double().T).square().sum().item()


# --- random, magnitude, Wanda ------------------------------------------------------------------------------------


def test_random_is_even_and_follows_its_seed():
    w, none = torch.ones(200, 100), Stats()
    keep = Random().prune(w, budget("50%"), none)[1]
    again, other = Random(0).prune(w, budget("50%"), none)[1], Random(1).prune(w, budget("50%"), none)[1]
    assert torch.equal(keep, again) and not torch.equal(keep, other)
    assert abs((keep & other).float().mean() - 0.25) < 0.02  # independent masks of one half meet in a quarter
    assert (keep.float().mean(0) - 0.5).abs().max() < 0.2  # no column is preferred


def test_random_draws_apart_for_maps_of_one_shape():
    one, two = torch.randn(2, 100, 100, generator=torch.Generator().manual_seed(0))
    a, b = (Random().score(w, Stats()) for w in (one, two))
    assert torch.equal(a, Random().score(one.clone(), Stats()))
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.05


def test_magnitude_keeps_the_largest():
    w = torch.tensor([[3.0, -4.0, 1.0, 2.0]])
    assert Magnitude().prune(w, budget("2"), Stats())[0].tolist() == [[3.0, -4.0, 0.0, 0.0]]


def test_wanda_by_hand():
    """Columns have rms 1, 5, 0.1: each row is ranked by itself, by |w| times that."""
    w = torch.tensor([[4.0, -1.0, 30.0], [1.0, 0.1, 4.0]])
    x = torch.tensor([[1.0, 7.0, 0.1], [-1.0, 1.0, -0.1]])
    out, keep = Wanda().prune(w, budget("2"), observe(Wanda.needs, w, x))
    assert keep.tolist() == [[True, True, False], [True, True, False]]
    assert torch.equal(out, torch.tensor([[4.0, -1.0, 0.0], [1.0, 0.1, 0.0]]))


# --- SparseGPT ---------------------------------------------------------------------------------------------------


def spelt_out(w, h, text, damp, block):
    """Algorithm 1 with its inverses taken anew for every column, in float64, one weight after another."""
    b, (rows, cols) = budget(text), w.shape
    (high, wide), w, h = b.unit, w.double().clone(), h.double().clone()
    h += damp * h.diagonal().mean() * torch.eye(cols, dtype=torch.float64)
    inverses = [torch.linalg.inv(h[j:, j:]) for j in range(cols)]  # of what is left of H once columns < j are settled
    span = b.group * wide or max(wide, block // wide * wide)
    keep = torch.ones(rows, cols, dtype=torch.bool)
    for a in range(0, cols, span):
        end = min(a + span, cols)
        cost = torch.zeros(rows // high, (end - a) // wide, dtype=torch.float64)
        for i, j in itertools.product(range(rows), range(a, end)):
            cost[i // high, (j - a) // wide] += w[i, j] ** 2 / inverses[j][0, 0]
        for pool in pools(b, rows // high, (end - a) // wide):
            ranked = sorted(pool, key=lambda place: -cost[place].item())
            for i, j in ranked[quota(b, rows // high, cols // wide, a // wide, end // wide, len(pool)) :]:
                keep[i * high : (i + 1) * high, a + j * wide : a + (j + 1) * wide] = False
        for j, i in itertools.product(range(a, end), range(rows)):
            if not keep[i, j]:
                w[i, j:] -= w[i, j] / inverses[j][0, 0] * inverses[j][0]
                w[i, j] = 0
    return w * keep, keep


def pools(b, rows, cols):
    if b.scope == "tensor" and not b.group:
        return [[(i, j) for i in range(rows) for j in range(cols)]]
    if b.scope == "column":
        return [[(i, j) for i in range(rows)] for j in range(cols)]
    return [[(i, j) for j in range(cols)] for i in range(rows)]


def quota(b, rows, cols, first, last, size):
    """How many of a block's pool stay; every block ends at the floor of what was due until there."""
    if b.group or b.scope == "column":
        return b.of(size)
    total = b.of(cols if b.scope == "row" else rows * cols)
    return math.floor(Fraction(total * last, cols)) - math.floor(Fraction(total * first, cols))


BUDGETS = ("50%", "2:4", "1:3", "30% per tensor", "50% per column", "25% of 2x2", "2:4 of 3x1", "1", "41 per tensor")


@pytest.mark.parametrize("text", BUDGETS)
@pytest.mark.parametrize("block", [8, 12, 128])
def test_sparse_gpt_is_its_algorithm(text, block):
    for seed in range(3):
        w, x = layer(seed=seed)
        stats = observe((Gram,), w, x)
        out, keep = SparseGpt(block=block).prune(w, budget(text), stats)
        slow, same = spelt_out(w, stats[Gram].value, text, 0.01, block)
        assert torch.equal(keep, same)
        torch.testing.assert_close(out.double(), slow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cols", [16, 33, 100, 300])
def test_sparse_gpt_is_its_algorithm_at_any_width(cols):
    """Whole, cut and several blocks; leaves that are full and not."""
    w, x = layer(rows=3, cols=cols, tokens=2 * cols, seed=cols)
    stats = observe((Gram,), w, x)
    out, keep = SparseGpt().prune(w, budget("50%"), stats)
    slow, same = spelt_out(w, stats[Gram].value, "50%", 0.01, 128)
    assert torch.equal(keep, same) and (keep.sum(1) == cols // 2).all()
    torch.testing.assert_close(out.double(), slow, rtol=1e-3, atol=1e-3)


def test_sparse_gpt_without_correlation_is_magnitude():
    """If H is the identity nothing can be made up for: the mask is that of each block's magnitudes, weights stay."""
    w, x = torch.randn(8, 64), 8 * torch.eye(64)
    stats = observe((Gram,), w, x)
    torch.testing.assert_close(stats[Gram].value, torch.eye(64))
    for text in ("2:4", "50%"):
        out, keep = SparseGpt(block=16).prune(w, budget(text), stats)
        blocks = w.abs().reshape(8, -1, 4 if text == "2:4" else 16)
        assert torch.equal(keep, select(blocks, budget("50%")).reshape(8, 64))
        assert torch.equal(out, w * keep)


@pytest.mark.parametrize("text", ["50%", "2:4", "25% per tensor"])
def test_sparse_gpt_loses_less_than_magnitude_and_wanda(text):
    for seed in range(3):
        w, x = layer(64, 160, 600, seed, loud=0.5)
        stats = observe((Gram, InputSquares), w, x)
        error = [output_error(w, m.prune(w, budget(text), stats)[0], x) for m in (SparseGpt(), Wanda(), Magnitude())]
        assert error[0] < error[1] < error[2]


def test_the_saliency_of_sparse_gpt_is_the_cost_of_one_weight():
    """w^2 / [H^-1]_jj is what remains after the best refit of all others: checked by refitting them."""
    w, x = layer(rows=1, cols=6, tokens=40)
    stats = observe((Gram,), w, x)
    score = SparseGpt(damp=1e-9).score(w, stats)[0]
    for j in range(6):
        others = [k for k in range(6) if k != j]
        fit = torch.linalg.lstsq(x[:, others].double(), (x @ w.T).double()).solution
        residual = (x[:, others].double() @ fit - (x @ w.T).double()).square().mean().item()
        assert score[j].item() == pytest.approx(residual, rel=1e-3)


def test_inverse_root_is_a_root_of_the_inverse():
    _, x = layer(cols=10)
    h = observe((Gram,), torch.ones(1, 10), x)[Gram].value
    h = h.triu() + h.triu(1).mT  # some libraries' products X^T X are symmetric but for rounding
    u = inverse_root(h, 0.01)
    damped = h.double() + 0.01 * h.double().diagonal().mean() * torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(u.T @ u, torch.linalg.inv(damped))
    assert torch.equal(u, u.triu()) and (u.diagonal() > 0).all()


def test_dead_inputs_go_first_and_stay_if_there_is_room():
    w, x = layer(cols=16)
    x[:, [2, 7, 11]] = 0
    stats = observe((Gram,), w, x)
    out, keep = SparseGpt().prune(w, budget("13"), stats)
    assert not keep[:, [2, 7, 11]].any() and torch.equal(out, w * keep)
    assert (SparseGpt().score(w, stats)[:, [2, 7, 11]] == 0).all()
    out, keep = SparseGpt().prune(w, budget("15"), stats)
    assert (keep.sum(1) == 15).all() and torch.equal(out, w * keep)
    alive = [j for j in range(16) if j not in (2, 7, 11)]
    half, _ = SparseGpt().prune(w, budget("50%"), stats)
    assert (half[:, alive] != w[:, alive]).any()  # the living still make up for each other


@pytest.mark.parametrize("low, times", [(-0.005, 1), (-0.05, 10), (-0.4, 100), (-1.5, 1000)])
def test_sparse_gpt_damps_a_singular_gram_harder(low, times):
    """Not a Gram matrix, but what rounding can make of one, writ large: damped until the last entry is above zero."""
    h = torch.diag(torch.tensor([1.0, 1.0, low]))
    u = inverse_root(h, 0.01)
    assert u[0, 0].item() ** -2 == pytest.approx(1 + times * 0.01 * h.diagonal().mean().item())


def test_sparse_gpt_gives_up_in_a_sentence():
    with pytest.raises(ValueError, match="singular, even with damp=10: show more tokens"):
        inverse_root(torch.diag(torch.tensor([1.0, 1.0, -1.5387])), 0.01)  # 1001 times the damp would do
    with pytest.raises(ValueError, match="singular"):
        inverse_root(torch.full((2, 2), torch.nan), 0.01)


# --- DSnoT -------------------------------------------------------------------------------------------------------


def swapped_by_hand(w, keep, x, m, cycles, threshold):
    """The paper's loop, one row and one candidate at a time, in float64; stops as the docstring says."""
    w, x, keep = w.double(), x.double(), keep.clone()
    mean, var, rms = x.mean(0), x.var(0, correction=0), x.square().mean(0).sqrt()
    cols = w.shape[1]
    m = m or cols
    for q in range(len(w)):
        for _ in range(cycles):
            error = sum(w[q, k] * mean[k] for k in range(cols) if not keep[q, k])
            if abs(error) <= threshold:
                break
            sign = 1 if error > 0 else -1
            leaves = [k for k in range(cols) if keep[q, k] and sign * w[q, k] * mean[k] < 0]
            comes = [k for k in range(cols) if not keep[q, k] and any(j // m == k // m for j in leaves)]
            if not comes:
                break
            i = max(comes, key=lambda k: sign * w[q, k] * mean[k] / var[k])
            j = min((j for j in leaves if j // m == i // m), key=lambda k: abs(w[q, k]) * rms[k])
            if abs(error - w[q, i] * mean[i] + w[q, j] * mean[j]) >= abs(error):
                break
            keep[q, i], keep[q, j] = True, False
    return keep


@pytest.mark.parametrize("text", ["50%", "2:4", "25%", "3:6"])
@pytest.mark.parametrize("cycles", [1, 3, 50])
def test_dsnot_is_the_papers_loop(text, cycles):
    moved = 0
    for seed in range(4):
        w, x = layer(mean=1.0, seed=seed)
        stats = observe(Dsnot.needs, w, x)
        keep = select(w.abs(), budget(text))
        after = Dsnot(cycles=cycles).correct(w, Pruned(w * keep, keep, budget(text)), stats)
        by_hand = swapped_by_hand(w, keep, x, budget(text).group, cycles, 0.1)
        assert torch.equal(after.keep, by_hand) and torch.equal(after.weight, w * by_hand)
        assert torch.equal(after.keep.sum(1), keep.sum(1))
        moved += int((after.keep != keep).sum())
        was, now = (((w * ~k) @ x.mean(0)).abs() for k in (keep, after.keep))
        assert (now <= was + 1e-5).all()
    assert moved > 0


def test_dsnot_leaves_rows_that_are_close_enough():
    w, x = layer(mean=1.0)
    keep = select(w.abs(), budget("50%"))
    before = Pruned(w * keep, keep, budget("50%"))
    stats = observe(Dsnot.needs, w, x)
    error = ((w * ~keep) @ stats[InputMean].value).abs()
    third, fourth = error.sort().values[2:4].tolist()
    still = (Dsnot(threshold=(third + fourth) / 2).correct(w, before, stats).keep == keep).all(1)
    assert still[error <= third].all() and not still.all()


def by_hand(w, mean, keep, **fields):
    """The mask after DSnoT on inputs of these means and unit variance."""
    w, mean, keep = torch.tensor([w]), torch.tensor(mean), torch.tensor([keep]).bool()
    squares, spread = InputSquares(mean.square() + 1, 1), InputVariance(torch.ones_like(mean), mean, 1)
    stats = Stats({InputMean: InputMean(mean, 1), InputVariance: spread, InputSquares: squares})
    return Dsnot(**fields).correct(w, Pruned(w * keep, keep, budget("2")), stats).keep[0].int().tolist()


def test_dsnot_drops_only_what_pulls_the_other_way():
    assert by_hand([1.0, 0.1, 1.0], [1.0, 0.0, -0.5], [0, 1, 1]) == [1, 1, 0]  # mean 0 pulls nowhere, cheap as it is
    assert by_hand([1.0, 0.1, 1.0], [1.0, 0.0, 0.5], [0, 1, 1]) == [0, 1, 1]


def test_dsnot_swaps_only_for_the_better_and_beyond_the_threshold():
    assert by_hand([1.0, 1.0, 2.0], [1.0, -1.0, -1.0], [0, 1, 1], cycles=3) == [0, 1, 1]  # e = 1 would be -1
    assert by_hand([1.0, 0.5, 2.0], [1.0, -1.0, -1.0], [0, 1, 1], threshold=1.0) == [0, 1, 1]  # e = 1 is near enough
    assert by_hand([1.0, 0.5, 2.0], [1.0, -1.0, -1.0], [0, 1, 1], threshold=0.99) == [1, 0, 1]


def test_defaults_are_the_papers():
    assert Dsnot() == Dsnot(cycles=50, threshold=0.1)
    assert SparseGpt() == SparseGpt(damp=0.01, block=128)
    assert Owl() == Owl(times=5.0, spread=0.08)
    assert Eora() == Eora(rank=32) and Random() == Random(seed=0)


def test_dsnot_gives_back_dense_values_after_sparse_gpt():
    w, x = layer(mean=1.0)
    stats = observe((Gram, *Dsnot.needs), w, x)
    out, keep = SparseGpt().prune(w, budget("50%"), stats)
    after = Dsnot().correct(w, Pruned(out, keep, budget("50%")), stats)
    assert torch.equal(after.weight, w * after.keep)


@pytest.mark.parametrize("text", ["50% per column", "25% of 2x2"])
def test_dsnot_refuses_what_its_swaps_would_break(text):
    w, x = layer()
    keep = select(w.abs(), budget(text))
    with pytest.raises(ValueError, match=f"dsnot.*'{text}'"):
        Dsnot().correct(w, Pruned(w * keep, keep, budget(text)), observe(Dsnot.needs, w, x))


def test_dsnot_does_not_follow_a_low_rank_part():
    w, x = layer()
    stats = observe((Gram, *Dsnot.needs), w, x)
    keep = select(w.abs(), budget("50%"))
    mended = Eora(rank=1).correct(w, Pruned(w * keep, keep, budget("50%")), stats)
    with pytest.raises(ValueError, match="right after pruning"):
        Dsnot().correct(w, mended, stats)


# --- EoRA --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_eora_is_the_best_of_its_rank(rank):
    """Reduced-rank regression in closed form: the lost output is projected on its own leading directions."""
    w, x = layer(rows=9, cols=12)
    stats = observe((Gram,), w, x)
    new, keep = Magnitude().prune(w, budget("25%"), stats)
    after = Eora(rank).correct(w, Pruned(new, keep, budget("25%")), stats)
    lost = (w - new).double() @ x.double().T
    best = torch.linalg.svdvals(lost)[rank:].square().sum().item()
    left, right = after.low_rank
    assert left.shape == (9, rank) and right.shape == (rank, 12)
    assert output_error(w, new + left @ right, x) == pytest.approx(
        best, rel=1e-4, abs=1e-6 * lost.square().sum().item()
    )
    u, s, v = torch.linalg.svd((w - new).double(), full_matrices=False)
    plain = output_error(w, new + ((u[:, :rank] * s[:rank]) @ v[:rank]).float(), x)
    assert best < plain
    assert torch.equal(after.weight, new) and torch.equal(after.keep, keep)


def test_eora_of_full_rank_mends_everything():
    w, x = layer(rows=9, cols=12)
    stats = observe((Gram,), w, x)
    after = Eora(rank=99).correct(w, Pruned(w * 0, torch.zeros_like(w).bool(), budget("1")), stats)
    assert after.low_rank[0].shape == (9, 9)
    torch.testing.assert_close(after.dense(), w, rtol=1e-3, atol=1e-3)


def test_eora_twice_adds_to_what_is_there():
    w, x = layer(rows=9, cols=12)
    stats = observe((Gram,), w, x)
    gone = Pruned(w * 0, torch.zeros_like(w).bool(), budget("1"))
    once = Eora(4).correct(w, gone, stats)
    twice = Eora(2).correct(w, Eora(2).correct(w, gone, stats), stats)
    assert twice.low_rank[0].shape == (9, 4) and twice.low_rank[1].shape == (4, 12)
    assert output_error(w, twice.dense(), x) == pytest.approx(output_error(w, once.dense(), x), rel=1e-3)


def test_eora_is_silent_where_no_input_goes():
    w, x = layer(rows=9, cols=12, tokens=5)  # five tokens span five of twelve directions
    x[:, 3] = 0
    stats = observe((Gram,), w, x)
    left, right = Eora(rank=5).correct(w, Pruned(w * 0, torch.zeros_like(w).bool(), budget("1")), stats).low_rank
    assert right.isfinite().all() and (left @ right)[:, 3].abs().max() < 1e-4
    assert output_error(w, left @ right, x) < 1e-5 * output_error(w, w * 0, x)
    outside = torch.linalg.svd(x)[2][5:]  # directions at right angles to every token
    assert (outside @ (left @ right).T).abs().max() < 1e-3 * w.abs().max()


def test_eora_knows_rounding_from_a_direction():
    w, x = layer(rows=9, cols=12, tokens=1)
    gone = Pruned(w * 0, torch.zeros_like(w).bool(), budget("1"))
    left, right = Eora(rank=4).correct(w, gone, observe((Gram,), w, x)).low_rank
    along = x[0] / x[0].norm()
    torch.testing.assert_close(left @ right, (w @ along)[:, None] * along, rtol=1e-3, atol=1e-3)


# --- allocation --------------------------------------------------------------------------------------------------

SHAPES = [(32, 16), (64, 32), (16, 16), (48, 64)]


def shares(signals=(0.0, 0.0, 0.0, 0.0), layers=(0, 0, 1, 2)):
    rows = zip(SHAPES, layers, signals, strict=True)
    return [Share(f"m{i}", s, at, torch.tensor(x)) for i, (s, at, x) in enumerate(rows)]


def test_erk_densities_are_the_formulas():
    sizes = [r * c for r, c in SHAPES]
    total = sum(sizes) // 2
    raw = [(r + c) / (r * c) for r, c in SHAPES]
    scale = total / sum(d * n for d, n in zip(raw, sizes, strict=True))
    assert max(scale * d for d in raw) > 1  # the smallest map is full: the rest is solved again
    full = [i for i, d in enumerate(raw) if scale * d >= 1]
    rest = [i for i in range(4) if i not in full]
    scale = (total - sum(sizes[i] for i in full)) / sum(raw[i] * sizes[i] for i in rest)
    expected = [sizes[i] if i in full else scale * raw[i] * sizes[i] for i in range(4)]
    kept = [b.keep for b in Erk().allocate(budget("50% per tensor"), shares())]
    assert sum(kept) == total and all(abs(k - e) < 1 for k, e in zip(kept, expected, strict=True))


def test_owl_counts_outliers_of_the_wanda_score():
    w, x = layer(rows=5, cols=40)
    w[0, 3] = 300.0
    x[:, 3] = 1.0
    stats = observe(Owl.needs, w, x)
    rms = x.double().square().mean(0).sqrt()
    score = [[abs(w[i, j].item()) * rms[j].item() for j in range(40)] for i in range(5)]
    mean = sum(map(sum, score)) / 200
    for times in (2.0, 5.0):
        expected = sum(s > times * mean for row in score for s in row) / 200
        assert expected > 0 and Owl(times=times).signal(w, stats).item() == pytest.approx(expected)


def test_owl_calls_nothing_an_outlier_where_all_are_alike():
    w = torch.ones(3, 4)
    assert Owl(times=1.0).signal(w, observe(Owl.needs, w, torch.ones(2, 4))).item() == 0


def test_owl_spreads_layers_around_the_budget():
    signals, layers = (0.11, 0.03, 0.06, 0.01), (0, 0, 1, 2)
    sizes = [r * c for r, c in SHAPES]
    block = (0.11 * sizes[0] + 0.03 * sizes[1]) / (sizes[0] + sizes[1])  # the first two are one layer
    scaled = [(d - 0.01) / 0.05 for d in (block, block, 0.06, 0.01)]
    mean = sum(n * s for n, s in zip(sizes, scaled, strict=True)) / sum(sizes)
    expected = [n * (0.4 + 2 * 0.15 * (s - mean)) for n, s in zip(sizes, scaled, strict=True)]
    kept = [b.keep for b in Owl(spread=0.15).allocate(budget("40% per tensor"), shares(signals, layers))]
    assert sum(kept) == sum(sizes) * 2 // 5 and all(abs(k - e) < 1 for k, e in zip(kept, expected, strict=True))


def test_owl_reads_counts_and_units_as_shares():
    signals = shares((0.11, 0.03, 0.06, 0.01))
    share = Owl().allocate(budget("25% of 2x4 per tensor"), signals)
    assert share == Owl().allocate(budget(f"{sum(b.keep for b in share)} of 2x4 per model"), signals)
    assert sum(b.keep for b in share) == sum(r * c for r, c in SHAPES) // 32


def test_owl_without_outliers_is_uniform_and_without_layers_counts_maps():
    sizes = [r * c for r, c in SHAPES]
    kept = [b.keep for b in Owl().allocate(budget("25% per tensor"), shares((0.2, 0.2, 0.2, 0.2)))]
    assert kept == [n // 4 for n in sizes]
    alone = [Share(f"m{i}", (10, 10), None, torch.tensor(s)) for i, s in enumerate((0.1, 0.0))]
    assert [b.keep for b in Owl(spread=0.1).allocate(budget("50% per tensor"), alone)] == [60, 40]


def test_owl_starves_no_layer():
    kept = [b.keep for b in Owl(spread=0.5).allocate(budget("10% per tensor"), shares((0.0, 0.0, 0.9, 0.0)))]
    assert kept[2] > 150 and all(k >= 0.005 * r * c for k, (r, c) in zip(kept, SHAPES, strict=True))


def test_rows_share_alike_and_leftovers_go_where_most_is_missing():
    """50 % of 32 x 16 and 64 x 32 by weights 1 : 3: 8.8 and 18.8 a row; 32 or 64 weights more, whole rows only."""

    class Third(Erk):
        def weigh(self, budget, shares):
            return [1.0, 2.0]

    two = [Share("a", (30, 10), 0), Share("b", (20, 10), 0)]
    budgets = Third().allocate(budget("60%"), two)  # 300 : 60 % is 300 of 500: 128.6 and 171.4, 4.3 and 8.6 a row
    assert [(b.keep, b.scope) for b in budgets] == [(4, "row"), (9, "row")]
    columns = Third().allocate(budget("60% per column"), two)  # 12.9 and 17.1 of each column of 30 and 20
    assert [(b.keep, b.scope) for b in columns] == [(13, "column"), (17, "column")]
    units = [Share("a", (60, 10), 0), Share("b", (40, 10), 0)]
    assert [b.keep for b in Third().allocate(budget("60% of 2x1"), units)] == [4, 9]
    units = [Share("a", (30, 20), 0), Share("b", (20, 20), 0)]
    assert [b.keep for b in Third().allocate(budget("60% of 1x2 per column"), units)] == [13, 17]


def test_erk_fills_no_map_beyond_its_rows():
    """A full map is passed over when rows are left, though one of its own would fit."""
    two = [Share("small", (5, 10), 0), Share("large", (20, 10), 0)]
    budgets = Erk().allocate(budget("95%"), two)  # 237: 50 and 187, of which 9 in each of 20 rows; 7 are left
    assert [b.keep for b in budgets] == [10, 9]


def test_owl_leaves_a_tenth_of_the_share_even_where_there_are_no_outliers():
    shares = [Share("a", (10, 100), 0, torch.tensor(0.3)), Share("b", (10, 100), 1, torch.tensor(0.0))]
    first, second = Owl(spread=0.5).weigh(budget("20%"), shares)  # 0.2 + 0.5, and 0.2 - 0.5 is less than 0.02
    assert first == pytest.approx(0.7) and second == pytest.approx(0.02)


@pytest.mark.parametrize("shape", [(1, 24), (24, 1)])
def test_sparse_gpt_leaves_even_a_map_of_one_row_as_it_was(shape):
    w, x = torch.randn(shape), torch.randn(50, shape[1])
    before = w.clone()
    SparseGpt().prune(w, budget("50% per tensor"), observe(SparseGpt.needs, w, x))
    assert torch.equal(w, before)
