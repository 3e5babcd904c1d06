"""Texts for explainers: from the index on disk as from codes in memory, and from Neuronpedia's files as they were written."""

import json

import pytest
import torch

from fewer.dictionaries.facts import facts
from fewer.dictionaries.neuronpedia import Source, to_neuronpedia
from fewer.dictionaries.shown import from_neuronpedia, shown_in
from fewer.layout import Codes
from fewer.measure.interpretation import interpret, shown
from tests.spoken import FEATURES, LENGTH, WINDOWS, built, dense, stored, text


def spell(i):
    return f"<{i}>"


def test_an_index_shows_the_texts_that_codes_in_memory_do(tmp_path):
    z, tokens = dense(), text()
    index, there = built(z, tokens, tmp_path / "index"), torch.as_tensor(stored(z)).float()
    codes = Codes(torch.arange(FEATURES).expand(len(z), -1).contiguous(), there, FEATURES)
    some = 0
    for f in range(FEATURES):
        ours = shown_in(index, spell, f, count=9, context=5, seed=f)
        truth = shown(codes, tokens, spell, f, count=9, context=5, seed=f)
        assert ours == truth
        some += len(ours.active)
        for e in ours.active:
            assert any(e.loud)
    assert some > FEATURES


def test_an_explainer_runs_from_the_index(tmp_path):
    """The planted rule: a feature speaks at one token and no other; who says just that token is right always."""
    from fewer.measure.explainers import Rules

    tokens = torch.randint(0, 50, (60, LENGTH), generator=torch.Generator().manual_seed(1))
    z = (tokens.flatten()[:, None] == torch.tensor([7, 8])).float() * 2
    index = built(z, tokens, tmp_path / "index")
    found = interpret(Rules(), shown_in(index, spell, 0, context=6))
    assert found.detection.value >= 0.95 and found.fuzzing.value >= 0.95


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    place = tmp_path_factory.mktemp("np")
    z, tokens = dense(0, WINDOWS * LENGTH, 150), text()
    from tests.test_explore import dictionary

    index, d = built(z, tokens, place / "index"), dictionary(150)
    unembedding = torch.randn(64, 32, generator=torch.Generator().manual_seed(5))
    known = list(facts(index, d, unembedding))
    spelt = lambda ids: [spell(i) for i in ids]  # noqa: E731
    return to_neuronpedia(index, d, iter(known), spelt, place / "out", Source("m", 4, "fewer")), known


def test_neuronpedia_reads_back_as_it_was_written(written):
    out, known = written
    pages = list(from_neuronpedia(out))
    assert len(pages) == 150
    for page, f in zip(pages, known, strict=True):
        assert page.feature == f.feature and page.frequency == f.frequency
        assert [w for w, _ in page.promoted] == [spell(t) for t, _ in f.promoted]
        assert [x for _, x in page.suppressed] == pytest.approx([x for _, x in f.suppressed], abs=1e-3)
        assert [e.tokens for e in page.examples] == [tuple(map(spell, e.tokens)) for e in f.examples]
        for e, truth in zip(page.examples, f.examples, strict=True):
            assert e.loud == pytest.approx([float(x) for x in truth.values], abs=1e-3)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda n: n.update(features=3), "'features' must be a list"),
        (lambda n: n["features"][1].update(feature_index="x"), "feature 1: 'feature_index' is 'x'"),
        (lambda n: n["features"][0].update(pos_values=["x"]), "feature 0: 'pos_values' must be finite numbers"),
        (lambda n: n["features"][0].update(neg_str=None), "'neg_str' must be a list of texts"),
        (lambda n: n["features"][0].update(frac_nonzero=float("nan")), "'frac_nonzero' must be finite numbers"),
        (lambda n: n["features"][0].update(activations=[{"tokens": ["a"], "values": []}]), "1 tokens and 0 values"),
    ],
)
def test_what_is_no_page_is_a_sentence(written, tmp_path, spoil, says):
    note = json.loads((written[0] / "batch-0.json").read_text())
    spoil(note)
    (tmp_path / "batch-0.json").write_text(json.dumps(note))
    with pytest.raises(ValueError, match=says):
        list(from_neuronpedia(tmp_path))
    with pytest.raises(ValueError, match="holds no batch-0.json"):
        list(from_neuronpedia(tmp_path / "none"))
