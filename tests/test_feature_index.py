"""The index of features on disk against brute force over dense codes; a killed or harmed one is never half."""

import doctest
import json

import numpy as np
import pytest
import torch

import fewer.dictionaries.spool
from fewer.dictionaries.spool import SAID, Spool
from fewer.dictionaries.store import open_index
from fewer.dictionaries.together import by_token
from fewer.layout import Codes
from tests.spoken import FEATURES, LENGTH, WINDOWS, built, dense, stored, text


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    z, tokens = dense(), text()
    return z, tokens, built(z, tokens, tmp_path_factory.mktemp("small") / "index", batch=20, chunk=300)


def test_lists_are_the_columns_of_the_codes(small):
    z, tokens, index = small
    there = stored(z)
    assert index.counts.tolist() == (z != 0).sum(0).tolist() and index.seen == len(z)
    assert (index.tokens == tokens.numpy()).all()
    for f in range(FEATURES):
        places, values = index.of(f)
        assert places.tolist() == np.flatnonzero(there[:, f]).tolist()
        assert values.tolist() == there[places, f].tolist()
    assert np.abs(there - z.numpy()).max() <= 2**-11 * z.abs().max()
    with pytest.raises(ValueError, match="no feature 17: there are 0 to 16"):
        index.of(FEATURES)


def test_values_of_any_size_keep_their_digits(tmp_path):
    z = torch.tensor([[1e-20, 1e9], [3e-21, -7.0e4], [1e-20, 0.0]])
    index = built(z, text(0, 1, 3), tmp_path / "index")
    for f in range(2):
        places, values = index.of(f)
        assert np.abs(values / z[places, f].numpy() - 1).max() < 2**-11


def test_peaks_quantiles_and_stretches_are_what_brute_force_says(small):
    z, tokens, index = small
    there = stored(z)
    for f in range(FEATURES):
        size = np.abs(there[:, f])
        best = [(w * LENGTH + int(size[w * LENGTH : (w + 1) * LENGTH].argmax())) for w in range(WINDOWS)]
        ranked = sorted((p for p in best if size[p] > 0), key=lambda p: (-size[p], p))
        assert index.peaks(f).tolist() == ranked
        assert index.at(f, 1.0, 3).tolist() == ranked[:3] and index.at(f, 0.0, 3).tolist() == ranked[-3:]
        if len(ranked) >= 7:
            start = round(0.5 * (len(ranked) - 3))
            assert index.at(f, 0.5, 3).tolist() == ranked[start : start + 3]
        for place in ranked[:4]:
            first, said, values = index.around(f, place, 4, 6)
            window = place // LENGTH * LENGTH
            span = range(max(window, place - 4), min(window + LENGTH, place + 7))
            assert first == span.start and said.tolist() == tokens.flatten()[span.start : span.stop].tolist()
            assert values.tolist() == there[span.start : span.stop, f].tolist()


def test_histograms_and_shared_places(small):
    z, _, index = small
    there = stored(z)
    for f in range(FEATURES - 1):
        heights, low, high = index.histogram(f, 8)
        said = there[:, f][there[:, f] != 0]
        assert (low, high) == (min(0, said.min()), max(0, said.max())) and heights.sum() == len(said)
        width = (high - low) / 8
        assert heights[2] == ((said >= low + 2 * width) & (said < low + 3 * width)).sum()
    assert index.histogram(FEATURES - 1, 8)[0].sum() == 0
    assert index.together(1, 2).tolist() == index.of(1)[0].tolist()
    assert index.together(3, 4).tolist() == np.flatnonzero((there[:, 3] != 0) & (there[:, 4] != 0)).tolist()


def test_how_the_pass_is_cut_changes_nothing(small, tmp_path):
    z, tokens, index = small
    for batch, chunk in ((7, 1), (240, 1 << 20)):
        other = built(z, tokens, tmp_path / f"{batch}", batch, chunk)
        for name in ("offsets", "places", "values", "scales", "tokens"):
            assert (getattr(other, name) == getattr(index, name)).all(), name


def test_what_a_row_says_twice_adds_up(tmp_path):
    codes = Codes(torch.tensor([[1, 1, 0], [2, 0, 0]]), torch.tensor([[2.0, 3.0, 1.0], [4.0, 1.0, -1.0]]), 3)
    spool = Spool(tmp_path / "index", 3, text(0, 1, 2))
    spool.add(codes)
    index = spool.finish()
    assert [tuple(x.tolist() for x in index.of(f)) for f in range(3)] == [([0], [1.0]), ([0], [5.0]), ([1], [4.0])]


def test_special_tokens_are_in_no_list_and_no_frequency(small, tmp_path):
    z, tokens, _ = small
    real = tokens.flatten() > 5
    index = built(z, tokens, tmp_path / "index", real=real)
    assert index.seen == real.sum() and index.counts.tolist() == (z[real] != 0).sum(0).tolist()


def test_a_nonzero_costs_at_most_eight_bytes_on_disk(tmp_path):
    z = dense(3, 4000, 64)
    index = built(z, text(3, 40, 100), tmp_path / "index", 500, 5000)
    files = [f for f in (tmp_path / "index").iterdir() if f.name != "tokens.npy"]
    assert {f.name for f in files} == {"index.json", "offsets.npy", "places.npy", "values.npy", "scales.npy"}
    assert sum(f.stat().st_size for f in files) <= 8 * index.nonzeros and index.bytes <= 8 * index.nonzeros


def test_memory_does_not_depend_on_the_number_of_features(tmp_path):
    """The same codes, spread over 8 or 80,000 features: the same bytes wait, at most a chunk and one batch."""
    most = {}
    for features in (8, 80_000):
        spool, most[features] = Spool(tmp_path / f"{features}", features, text(0, 100, 50), chunk=3000), 0
        draw = torch.Generator().manual_seed(1)
        for _ in range(50):
            index = torch.stack([torch.randperm(8, generator=draw)[:4] for _ in range(100)]) * (features // 8)
            spool.add(Codes(index, torch.ones(100, 4), features))
            most[features] = max(most[features], spool.held)
    assert most[8] == most[80_000] <= (3000 + 400) * SAID.itemsize


def test_a_killed_pass_goes_on_and_leaves_nothing_half(small, tmp_path):
    z, tokens, whole = small
    out = tmp_path / "index"
    spool = Spool(out, FEATURES, tokens, chunk=200)
    for start in range(0, 160, 20):
        spool.add(Codes.pack(z[start : start + 20], z[start : start + 20] != 0))
    assert not out.exists() and 0 < spool.done < 160
    again = Spool(out, FEATURES, tokens, chunk=200)
    assert again.done == spool.done
    index = built(z, tokens, out, 20, 200)
    assert all((getattr(index, n) == getattr(whole, n)).all() for n in ("offsets", "places", "values", "scales"))
    assert index.seen == len(z) and [p.name for p in tmp_path.iterdir()] == ["index"]
    with pytest.raises(ValueError, match="exists; choose another name"):
        Spool(out, FEATURES, tokens)


def test_a_pass_over_other_tokens_begins_anew(small, tmp_path):
    z, tokens, _ = small
    spool = Spool(tmp_path / "index", FEATURES, tokens, chunk=1)
    spool.add(Codes.pack(z[:20], z[:20] != 0))
    assert Spool(tmp_path / "index", FEATURES, tokens, chunk=1).done == 20
    assert Spool(tmp_path / "index", FEATURES, text(1), chunk=1).done == 0


def test_bad_input_is_refused(small, tmp_path):
    z, tokens, _ = small
    spool = Spool(tmp_path / "index", FEATURES, tokens)
    bad = z[:5].clone()
    bad[3, 0] = float("nan")
    with pytest.raises(ValueError, match="token 3: a code is NaN"):
        spool.add(Codes.pack(bad, bad != 0))
    with pytest.raises(ValueError, match="expected 240 at most, 17"):
        spool.add(Codes.pack(z[:5, :4], z[:5, :4] != 0))
    with pytest.raises(ValueError, match="0 of 240 tokens were coded"):
        spool.finish()
    silent = Spool(tmp_path / "silent", 3, text(0, 1, 2))
    silent.add(Codes(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1), 3))
    with pytest.raises(ValueError, match="no feature spoke"):
        silent.finish()


def cut_places(path):
    file = path / "places.npy"
    file.write_bytes(file.read_bytes()[:-8])


def say(field, value):
    def change(path):
        note = json.loads((path / "index.json").read_text())
        (path / "index.json").write_text(json.dumps({**note, field: value}))

    return change


def put(name, array):
    return lambda path: np.save(path / f"{name}.npy", array)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut_places, "places.npy cannot be read"),
        (lambda path: (path / "index.json").unlink(), "is no index of features"),
        (lambda path: (path / "index.json").write_text("[]"), "format is not 'fewer features 1'"),
        (say("format", "fewer features 9"), "format is not 'fewer features 1'"),
        (say("features", 18), r"scales.npy: shape \(17,\), index.json says \(18,\)|offsets.npy: shape"),
        (say("seen", "many"), "seen is 'many'; it must be a whole number"),
        (put("values", np.zeros(3)), "values.npy: numbers of type <f8, expected <f2"),
        (put("offsets", np.arange(18)[::-1].copy()), "must rise from 0"),
        (put("offsets", np.array([{}], object)), "offsets.npy cannot be read"),
    ],
)
def test_an_index_that_is_not_whole_is_refused(small, tmp_path, harm, words):
    z, tokens, _ = small
    built(z, tokens, tmp_path / "index")
    harm(tmp_path / "index")
    with pytest.raises(ValueError, match=words):
        open_index(tmp_path / "index")


def test_correlations_are_those_of_the_dense_codes(small):
    z, _, index = small
    there = stored(z)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(there.T)
    with by_token(index) as turned:
        for f in range(FEATURES - 1):
            found = turned.correlated(f, 5)
            both = ((there[:, [f]] != 0) & (there != 0)).sum(0)
            others = [g for g in range(FEATURES) if g != f and both[g] and r[f, g] > 0]
            assert [g for g, *_ in found] == sorted(others, key=lambda g: -r[f, g])[:5]
            for g, pearson, cosine, shared in found:
                norms = np.linalg.norm(there[:, f]) * np.linalg.norm(there[:, g])
                assert abs(pearson - r[f, g]) < 1e-6 and shared == both[g]
                assert abs(cosine - there[:, f] @ there[:, g] / norms) < 1e-6
        assert turned.correlated(1, 1)[0][0] == 2 and turned.correlated(FEATURES - 1, 3) == []


def test_the_worked_example():
    assert doctest.testmod(fewer.dictionaries.spool).failed == 0
