"""Streams of activations: every token once a pass, mixed, and the same from any point on."""

import itertools

import numpy as np
import pytest
import torch
from tiny import batch, build

from fewer.models import find_taps
from fewer.train import Live, Rows, activations


def some(source, count, since=0):
    return [b.clone() for b in itertools.islice(source.since(since), count)]


def test_rows_come_once_a_pass_in_a_new_order():
    rows = torch.arange(20.0)[:, None]
    found = some(Rows(rows, 6), 7)
    for one in (found[:3], found[3:6]):
        assert len(set(torch.cat(one).flatten().tolist())) == 18
    assert not torch.equal(torch.cat(found[:3]), torch.cat(found[3:6]))
    assert not torch.equal(torch.cat(found[:3]), rows[:18])
    for number in (1, 3, 5):
        assert all(map(torch.equal, some(Rows(rows, 6), 7 - number, number), found[number:]))


def test_rows_of_a_file(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 3)).astype(np.float16))
    rows = np.load(tmp_path / "x.npy", mmap_mode="r")
    mapped, plain = some(Rows(rows, 8), 9), some(Rows(torch.from_numpy(np.array(rows)), 8), 9)
    assert all(map(torch.equal, mapped, plain)) and mapped[0].dtype == torch.float32


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="at least one batch of 8"):
        Rows(torch.zeros(7, 2), 8)


@pytest.fixture(scope="module")
def live():
    model = build("llama")
    ids = batch("llama", rows=10, length=12)["input_ids"]
    return model, ids, find_taps(model, ["layers.0", "layers.1.mlp:in"])


def test_live_tokens_come_once_a_pass_and_special_ones_never(live):
    model, ids, taps = live
    special = int(ids[0, 0])
    source = Live(model, taps, ids, batch=5, leave=frozenset([special]), pool=4, at_once=3)
    real = ids != special
    truth = activations(model, taps, ids)[real]
    counts = [int(real[p].sum()) // 5 for p in torch.randperm(10, generator=torch.Generator().manual_seed(0)).split(4)]
    rows = torch.cat(some(source, sum(counts)))
    near = torch.cdist(rows.double(), truth.double())
    assert near.min(1).values.max() < 1e-4 and len(set(near.argmin(1).tolist())) == len(rows)
    order = near.argmin(1)
    assert (order[1:] - order[:-1]).abs().float().mean() > 3  # neighbours in a batch are not neighbours in the text


@pytest.mark.parametrize("number", [1, 4, 9, 30])
def test_live_goes_on_from_any_batch(live, number):
    model, ids, taps = live
    source = Live(model, taps, ids, batch=7, pool=3, seed=5)
    whole = some(source, number + 3)
    assert all(map(torch.equal, some(source, 3, number), whole[number:]))


def test_one_dictionary_over_many_layers_sees_each_as_rows_of_its_own(live):
    model, ids, taps = live
    side, spread = Live(model, taps, ids, batch=10), Live(model, taps, ids, batch=20, spread=True)
    assert some(spread, 1)[0].shape == (20, some(side, 1)[0].shape[1] // 2)


def test_what_cannot_be_streamed_is_a_sentence(live):
    model, ids, taps = live
    with pytest.raises(ValueError, match="do not fill one batch of 1000"):
        Live(model, taps, ids, batch=1000)
    broken = build("llama")
    with torch.no_grad():
        broken.model.layers[0].mlp.down_proj.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"site model.layers.0: NaN or infinite at"):
        some(Live(broken, find_taps(broken, ["layers.0"]), ids, batch=5), 1)
