"""Measures of dictionaries, each against a planted answer."""

import doctest
import importlib

import pytest
import torch

from fewer.layout import Codes
from fewer.measure import fvu, ratio, reconstruction

FILES = ["estimate", "reconstruction"]


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
