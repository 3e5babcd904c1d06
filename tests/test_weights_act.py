"""What is done to one linear map: written, stored, counted; and refused with the site's name."""

from dataclasses import replace

import pytest
import torch
from test_weights import layer, output_error
from torch import nn

from fewer.calibrate import Gram, InputSquares, Stats, observe
from fewer.core import Site, budget, find
from fewer.layout import Dense
from fewer.weights import Pruned, _act
from fewer.weights.dsnot import Dsnot
from fewer.weights.eora import Eora
from fewer.weights.magnitude import Magnitude
from fewer.weights.sparse_gpt import SparseGpt
from fewer.weights.wanda import Wanda


def site_of(w, dtype=torch.float32):
    linear = nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=dtype)
    linear.weight.data.copy_(w)
    return Site("blocks.3.up", linear)


def test_acting_writes_the_map_and_says_what_it_cost():
    w, x = layer(rows=8, cols=32)
    site, stats = site_of(w), observe((Gram, InputSquares), w, x)
    change, stored = _act.act(Wanda(), (), site, budget("25%"), stats)
    expected, _ = Wanda().prune(w, budget("25%"), stats)
    assert torch.equal(site.tensor, expected) and torch.equal(stored.layout.dense(), expected)
    assert (change.site, change.step, change.budget, change.kept) == ("blocks.3.up", "weights/wanda", "25%", 0.25)
    assert (change.bytes_before, change.bytes_after) == (8 * 32 * 4, stored.layout.bytes) and change.seconds > 0
    assert change.layout == stored.layout.name and stored.low_rank is None
    assert change.error == pytest.approx(output_error(w, expected, x) / output_error(w, w * 0, x), rel=1e-4)


def test_acting_stores_low_rank_factors_in_the_parameters_dtype_and_counts_them():
    w, x = layer(rows=8, cols=32)
    site = site_of(w, torch.bfloat16)
    w = w.bfloat16().float()
    stats = observe((Gram,), w, x)
    change, stored = _act.act(SparseGpt(), (Eora(rank=2),), site, budget("2:4"), stats)
    left, right = stored.low_rank
    assert left.dtype == right.dtype == site.tensor.dtype == torch.bfloat16
    assert change.bytes_after == stored.bytes == stored.layout.bytes + 2 * (8 * 2 + 2 * 32)
    dense = stored.layout.dense().float() + left.float() @ right.float()
    assert torch.equal(site.tensor.detach(), dense.bfloat16())  # what runs is what is stored
    assert change.step == "weights/sparse_gpt + weights/eora" and change.layout == "nm"
    assert change.error == pytest.approx(output_error(w, dense, x) / output_error(w, w * 0, x), rel=1e-4)


def test_acting_in_a_narrower_dtype_rounds_what_runs():
    w, _ = layer()
    site = site_of(w)
    change, stored = _act.act(Magnitude(), (), site, budget("50%"), Stats(), torch.float16)
    assert change.bytes_before == 2 * w.numel()
    assert stored.layout.dense().dtype == torch.float16 and site.tensor.dtype == torch.float32
    assert torch.equal(site.tensor.detach(), stored.layout.dense().float())


def test_acting_without_a_gram_claims_no_error():
    w, x = layer()
    change, _ = _act.act(Wanda(), (), site_of(w), budget("50%"), observe((InputSquares,), w, x))
    assert change.error is None
    silent = observe((Gram,), w, x * 0)
    assert _act.act(SparseGpt(), (), site_of(w), budget("50%"), silent)[0].error is None  # 0 / 0 is no error either


def test_acting_on_everything_changes_nothing():
    w, x = layer()
    site, stats = site_of(w), observe((Gram, *Dsnot.needs), w, x)
    change, stored = _act.act(SparseGpt(), (Dsnot(),), site, budget("100%"), stats)
    assert torch.equal(site.tensor, w) and isinstance(stored.layout, Dense)
    assert change.error == 0 and change.kept == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_weights_are_named(bad):
    w, _ = layer()
    w[1, 2] = bad
    with pytest.raises(ValueError, match=r"blocks\.3\.up: NaN or infinite weights"):
        _act.act(Magnitude(), (), site_of(w), budget("50%"), Stats())


def test_what_a_method_refuses_is_named_with_the_site():
    w, _ = layer()
    with pytest.raises(ValueError, match=r"blocks\.3\.up: budget '2:5'"):
        _act.act(Magnitude(), (), site_of(w), budget("2:5"), Stats())


def test_papers_are_joined_to_the_ledger():
    ledger = {name: find(f"weights/{name}").paper.ledger for name in ("sparse_gpt", "dsnot", "eora", "erk", "random")}
    assert ledger == {"sparse_gpt": 458, "dsnot": 180, "eora": 414, "erk": 174, "random": 174}


def test_low_rank_parts_are_added_in_float32():
    w = torch.zeros(2, 2, dtype=torch.float16)
    p = Pruned(w, w.bool(), budget("1"))
    assert p.dense() is w
    factors = (torch.ones(2, 1).half(), torch.ones(1, 2).half())
    assert replace(p, low_rank=factors).dense().equal(torch.ones(2, 2))
