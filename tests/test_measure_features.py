"""Measures of dictionaries, each against a planted answer."""

import doctest
import importlib

import pytest
import scipy.stats
import torch

from fewer import measure
from fewer.layout import Codes
from fewer.measure import fvu, ratio, reconstruction
from fewer.measure.estimate import jackknife
from fewer.measure.matching import (
    against_shuffled,
    comparative_sharedness,
    correlations,
    match,
    rsa,
    shared,
    sharedness,
    stability,
    svcca,
)
from fewer.measure.planted import Planted, f1, mcc, mean_max_cosine, over_seeds, supervised

FILES = ["estimate", "reconstruction", "planted", "matching"]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes_of(z):
    return Codes.pack(z, z != 0)


@pytest.mark.parametrize("file", FILES)
def test_examples_in_docstrings_hold(file):
    module = importlib.import_module(f"fewer.measure.{file}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


# --- reconstruction ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("scale", [1.0, 10.0, 40.0])
def test_half_of_the_variance_reads_half_at_any_mean_and_scale(mean, scale):
    part, rest = gaussian(8000, 32), gaussian(8000, 32, seed=1)  # independent, equal variances
    x, x_hat = scale * (part + rest + 2**0.5 * mean), scale * (part + 2**0.5 * mean)
    codes = Codes(torch.zeros(8000, 1, dtype=torch.long), torch.ones(8000, 1), 2)
    pieces = [
        (x[i : i + 250], x_hat[i : i + 250], Codes(codes.index[:250], codes.value[:250], 2))
        for i in range(0, 8000, 250)
    ]
    r = reconstruction(pieces)
    assert r.explained.value == pytest.approx(0.5, abs=0.005) and r.explained.higher_is_better
    assert r.fvu.value == pytest.approx(fvu(x, x_hat), rel=1e-9) and not r.fvu.higher_is_better
    assert r.explained.estimate.low < 0.5 < r.explained.estimate.high and r.explained.estimate.n == 32
    biased = reconstruction((a, b + scale, c) for a, b, c in pieces)  # a constant error costs what it costs
    assert biased.explained.value == pytest.approx(0.0, abs=0.01)


def test_who_spoke_how_often_is_counted():
    z = torch.zeros(40, 6)
    z[:, 0] = 1.0  # always
    z[:3, 1] = -1.0  # 7.5 %
    z[::2, 2] = 2.0  # half
    x = gaussian(40, 4)
    r = reconstruction([(x[i : i + 8], 2 * x[i : i + 8], codes_of(z[i : i + 8])) for i in range(0, 40, 8)])
    assert r.frequency.tolist() == [1.0, 0.075, 0.5, 0.0, 0.0, 0.0] and r.tokens == 40
    assert r.l0.value == pytest.approx(1.575) and r.cosine.value == pytest.approx(1.0)
    assert r.dead.value == 0.5 and r.dense.value == pytest.approx(2 / 6)
    assert not (r.dead.higher_is_better or r.dense.higher_is_better or r.l0.higher_is_better)
    assert reconstruction([(x, -x, codes_of(z))]).cosine.value == pytest.approx(-1.0)


def test_the_interval_of_a_ratio_holds_the_truth_nineteen_times_of_twenty():
    make, held = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        size = torch.randint(5, 15, (30,), generator=make).double()
        e = ratio(size * 0.3 + size.sqrt() * torch.randn(30, generator=make).double(), size)
        held += e.low <= 0.3 <= e.high
    assert 0.92 <= held / 400 <= 0.98


def test_what_cannot_be_judged_is_refused():
    x, z = gaussian(4, 3), codes_of(torch.ones(4, 2))
    with pytest.raises(ValueError, match="nothing to judge"):
        reconstruction([])
    with pytest.raises(ValueError, match="piece 1: .* NaN"):
        reconstruction([(x, x, z), (x, x / 0, z)])
    with pytest.raises(ValueError, match="no variance"):
        reconstruction([(torch.full((4, 3), 7.1), x, z)])
    with pytest.raises(ValueError, match="as many above as below"):
        ratio(x[:, 0], x[:3, 0])


# --- planted truth and matching ------------------------------------------------------------------------------------------


def test_planted_features_come_as_often_as_told_and_rows_are_their_sum():
    p = Planted.make(64, 32, active=4, zipf=1.0, mean=3.0, scale=10.0)
    x, z = p.draw(20_000)
    on = (z > 0).double().mean(0)
    assert on.sum() == pytest.approx(4, rel=0.03) and on[0] == pytest.approx(0.5, abs=0.02)
    assert on[10] / on[43] == pytest.approx(4, rel=0.15), "1 / rank: 44 / 11"
    torch.testing.assert_close(x - p.mean, 10 * z @ p.atoms, rtol=1e-4, atol=1e-3)
    spread = (x - p.mean).square().sum(1).mean().sqrt()
    assert p.mean.norm() / spread == pytest.approx(3, rel=0.15)
    same = p.draw(5, seed=3)[0]
    assert torch.equal(same, p.draw(5, seed=3)[0]) and not torch.equal(same, p.draw(5, seed=4)[0])


def test_planted_children_need_their_parents_and_groups_come_together():
    p = Planted.make(40, 32, active=4, children=0.5, seed=1)
    _, z = p.draw(20_000)
    child = (p.parent >= 0).nonzero()[:, 0]
    assert len(child) == 20 and not ((z[:, child] > 0) & (z[:, p.parent[child]] == 0)).any()
    torch.testing.assert_close((z > 0).float().mean(0), p.chance, rtol=0.2, atol=0.01)
    q = Planted.make(40, 32, active=4, zipf=0.0, group=2, together=0.8)
    on = (q.draw(20_000)[1] > 0).double()
    r = torch.corrcoef(on.T)
    assert r[0, 1] > 0.4 and abs(r[0, 2]) < 0.05
    torch.testing.assert_close(on.mean(0), q.chance.double(), rtol=0.15, atol=0)


def test_the_true_dictionary_scores_one_a_random_one_does_not():
    p = Planted.make(64, 32, active=3)
    x, z = p.draw(2000)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for score in (
        mcc(p.atoms[order], p.atoms),
        mean_max_cosine(3 * p.atoms[order], p.atoms),
        f1(z[:, order] > 0, z > 0),
    ):
        assert score.value == pytest.approx(1, abs=1e-6) and score.higher_is_better
    other = gaussian(64, 32, seed=9)
    assert mcc(other, p.atoms).value < mean_max_cosine(other, p.atoms).value < 0.6
    assert f1(gaussian(2000, 64) > 1.5, z > 0).value < 0.2
    assert mcc(p.atoms[:32], p.atoms).value == pytest.approx(0.5, abs=1e-6), "half of it"
    assert mean_max_cosine(supervised(x, z > 0), p.atoms).value > 0.98, "one who knows who speaks finds the atoms"
    assert over_seeds([0.1, 0.3], "x", True).estimate.n == 2


def test_seeds_share_a_permuted_copy_and_nothing_of_a_random_one():
    a, order = gaussian(50, 32), torch.randperm(50, generator=torch.Generator().manual_seed(0))
    half = torch.cat([a[:25], gaussian(25, 32, seed=2)])[order]
    assert shared(a, a[order]).value == 1 and shared(a, gaussian(50, 32, seed=1)).value == 0
    assert shared(a, half).value == 0.5 and shared(a, -a).value == 0
    assert shared(a, a[order], (a, a[order])).value == 1 and shared(a, a[order], (a, a)).value < 0.1
    assert stability([a, half, a[order]]).value == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_sharedness_is_one_for_a_permuted_copy_and_chance_for_shuffled_tokens():
    _, z = Planted.make(40, 32, active=4).draw(3000)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        correlations(codes_of(z), codes_of(z)), torch.corrcoef(z.double().T), rtol=1e-6, atol=1e-8
    )
    i, j = match(correlations(codes_of(z), codes_of(z[:, order])))
    assert torch.equal(order[j], i), "the permutation, exactly"
    copy = sharedness(codes_of(z), codes_of(z[:, order]))
    mixed = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    chance = sharedness(codes_of(z), codes_of(z[mixed]))
    part = sharedness(codes_of(z), codes_of(torch.cat([z[:, :10], z[mixed, 10:]], 1)))
    assert copy.value == pytest.approx(1) and chance.value < 0.1 < 0.4 < part.value < 0.9
    more = comparative_sharedness(codes_of(z), [codes_of(z)], [codes_of(z[mixed])])
    assert (more > 0.8).all()


def test_svcca_and_rsa_are_one_for_a_rotated_copy_and_stand_above_shuffled():
    x = gaussian(200, 8)
    turn = torch.linalg.qr(gaussian(8, 8, seed=1)).Q
    assert svcca(x, 3 * x @ turn + 1) == pytest.approx(1, abs=1e-6) and rsa(x, x @ turn) == pytest.approx(1, abs=1e-4)
    assert svcca(x, gaussian(200, 8, seed=2)) < 0.3 and abs(rsa(x, gaussian(200, 8, seed=2))) < 0.1
    gain, null = against_shuffled(svcca, x, x @ turn, times=20)
    assert gain.estimate.low > 0.7 and null.max() < 0.4
    assert rsa(x[:40], gaussian(40, 8, seed=3)) == pytest.approx(spearman(x[:40], gaussian(40, 8, seed=3)), abs=1e-6)


def spearman(x, y):
    def near(t):
        t = t / t.norm(dim=1, keepdim=True)
        return [(t[i] @ t[j]).item() for i in range(len(t)) for j in range(i + 1, len(t))]

    return scipy.stats.spearmanr(near(x), near(y)).statistic


def test_a_jackknife_of_a_mean_is_students_interval():
    x = gaussian(10)
    e, truth = jackknife(lambda rows: x[rows].mean().item(), 10), measure.mean(x)
    assert (e.value, e.low, e.high) == pytest.approx((truth.value, truth.low, truth.high), rel=1e-4)
