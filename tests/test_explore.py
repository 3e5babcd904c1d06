"""What is said of features against plain formulas; exports, page and command against what is read back from them."""

import base64
import json
import re
import zlib
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import fewer.dictionaries
from fewer.cli import main
from fewer.dictionaries.delphi import to_delphi
from fewer.dictionaries.explore import indexed
from fewer.dictionaries.facts import Show, examples, facts, unembedding_of
from fewer.dictionaries.neuronpedia import Source, to_neuronpedia
from fewer.dictionaries.spool import spooled
from fewer.dictionaries.store import open_index
from fewer.features.abs_top_k import AbsTopK
from fewer.report import explorer
from tests.spoken import FEATURES, LENGTH, VOCABULARY, WINDOWS, built, dense, dictionary, stored, text
from tests.tiny import build


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    z, tokens = dense(), text()
    return z, tokens, built(z, tokens, tmp_path_factory.mktemp("small") / "index", batch=20, chunk=300)


def test_facts_are_what_the_formulas_say(small):
    z, tokens, index = small
    there, d = stored(z), dictionary()
    unembedding = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(5))
    logits = (unembedding.double() @ d.decoder.double().T).T.numpy()
    rows = torch.nn.functional.normalize(d.decoder.double(), dim=1).numpy()
    cosine = rows @ rows.T - 9 * np.eye(FEATURES)
    for f in facts(index, d, unembedding, Show(tokens=5, features=FEATURES - 1, bins=8)):
        i, said = f.feature, there[:, f.feature][there[:, f.feature] != 0]
        assert f.count == len(said) and f.frequency == len(said) / len(z)
        assert [t for t, _ in f.promoted] == np.argsort(-logits[i])[:5].tolist()
        assert [t for t, _ in f.suppressed] == np.argsort(logits[i])[:5].tolist()
        assert abs(f.promoted[0][1] - logits[i].max()) < 1e-4 and sum(f.logits[0]) == VOCABULARY
        assert [g for g, _ in f.near] == np.argsort(-cosine[i])[:-1].tolist()
        assert abs(f.near[0][1] - cosine[i].max()) < 1e-5
        if len(said):
            assert abs(f.mean - said.mean()) < 1e-5 and f.loudest == said[np.abs(said).argmax()]
            mass = np.bincount(tokens.flatten(), np.abs(there[:, i]), VOCABULARY) / np.abs(said).sum()
            assert np.allclose([x for _, x in f.heard], np.sort(mass)[::-1][: len(f.heard)])
            assert np.allclose([mass[t] for t, _ in f.heard], [x for _, x in f.heard])
        else:
            assert (f.mean, f.loudest, f.heard, f.examples, f.together) == (0, 0, [], [], [])


def test_examples_are_shown_once_from_the_loudest_down(small):
    _, _, index = small
    for f in range(FEATURES):
        found = examples(index, f)
        places, ranked = [e.place for e in found], index.peaks(f).tolist()
        assert len(set(places)) == len(places) and places[:8] == ranked[:8]
        assert places == [p for p in ranked if p in places]
        assert all(e.tokens[e.place - e.first] == index.tokens.flatten()[e.place] for e in found)


def test_a_dictionary_that_writes_elsewhere_promotes_nothing(small):
    _, _, index = small
    (first, *_) = facts(index, dictionary(), torch.randn(9, 8))
    assert first.promoted == first.suppressed == [] and first.near
    with pytest.raises(ValueError, match="the index is of 17 features, the dictionary has 5"):
        next(facts(index, dictionary(5)))
    assert unembedding_of(build("vit")) is None


def test_one_pass_of_a_model_is_what_its_layer_says(tmp_path):
    model, d, tokens = build("llama"), dictionary(24, rule=AbsTopK()), text(2, 11, 10)
    index = indexed(d, model, tokens, tmp_path / "index", leave={3})
    said = model.model(tokens, output_hidden_states=True).hidden_states[1].flatten(0, 1)
    z = d.code(said) * (tokens.flatten() != 3)[:, None]
    assert index.seen == (tokens != 3).sum() and (z < 0).any()
    for f in range(24):
        places, values = index.of(f)
        assert places.tolist() == z[:, f].nonzero()[:, 0].tolist()
        assert torch.allclose(torch.from_numpy(values), z[places, f], rtol=2e-3)
    assert indexed(d, None or model, tokens, tmp_path / "index", leave={3}).nonzeros == index.nonzeros
    with pytest.raises(ValueError, match="another dictionary or of other tokens"):
        indexed(dictionary(24, seed=1, rule=AbsTopK()), model, tokens, tmp_path / "index", leave={3})


def test_a_pass_of_a_model_that_was_killed_goes_on(tmp_path, monkeypatch):
    model, d, tokens = build("llama"), dictionary(24), text(2, 30, 10)
    monkeypatch.setattr("fewer.dictionaries.explore.spooled", partial(spooled, chunk=1))
    told = []

    def kill(done, total):
        told.append(done)
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        indexed(d, model, tokens, tmp_path / "index", told=kill)
    told.clear()
    index = indexed(d, model, tokens, tmp_path / "index", told=lambda done, total: told.append(done))
    assert told == [24, 30]
    whole = indexed(d, model, tokens, tmp_path / "whole")
    assert (index.places == whole.places).all() and (index.values == whole.values).all()


def test_sites_that_do_not_fit_are_refused(tmp_path):
    model, tokens = build("llama"), text(2, 2, 10)
    with pytest.raises(ValueError, match=r"model.layers.0: 32 numbers a token, the dictionary reads 8"):
        indexed(dictionary(dim=8), model, tokens, tmp_path / "index")
    with pytest.raises(ValueError, match="the model has no module 'layers.7'"):
        indexed(dictionary(reads=("layers.7",)), model, tokens, tmp_path / "index")
    with pytest.raises(ValueError, match="does not say which sites it reads"):
        indexed(dictionary(reads=()), model, tokens, tmp_path / "index")


@pytest.mark.parametrize("splits", [1, 5])
def test_delphi_reads_back_the_codes(small, tmp_path, splits):
    """As its loader does it: the third column counts from the file's first latent, the name's last one is within."""
    z, tokens, index = small
    to_delphi(index, tmp_path / "cache", "layers.0", splits, {"model_name": "m"})
    there, covered = np.zeros((WINDOWS, LENGTH, FEATURES)), []
    for file in (tmp_path / "cache" / "layers.0").glob("*.safetensors"):
        first, last = map(int, file.stem.split("_"))
        held = load_file(file)
        assert held["locations"].dtype == np.uint16 and held["activations"].dtype == np.float16
        assert (held["tokens"] == tokens.numpy()).all()
        batch, position, latent = held["locations"].astype(np.int64).T
        there[batch, position, latent + first] = held["activations"]
        covered += range(first, last + 1)
    assert sorted(covered) == list(range(FEATURES))
    assert np.allclose(there.reshape(-1, FEATURES), z, atol=2**-10 * float(z.abs().max()))
    assert json.loads((tmp_path / "cache/layers.0/config.json").read_text())["model_name"] == "m"
    with pytest.raises(ValueError, match="splits=0"):
        to_delphi(index, tmp_path / "other", "layers.0", 0)


NUMBER, WHOLE, NUMBERS, STRINGS = (int, float), int, [(int, float)], [str]
FEATURE = {  # the arguments of NeuronpediaDashboardFeature in SAEDashboard 0.8.0
    "feature_index": WHOLE, "neuron_alignment_indices": NUMBERS, "neuron_alignment_values": NUMBERS,
    "neuron_alignment_l1": NUMBERS, "correlated_neurons_indices": NUMBERS, "correlated_neurons_l1": NUMBERS,
    "correlated_neurons_pearson": NUMBERS, "correlated_features_indices": NUMBERS, "correlated_features_l1": NUMBERS,
    "correlated_features_pearson": NUMBERS, "neg_str": STRINGS, "neg_values": NUMBERS, "pos_str": STRINGS,
    "pos_values": NUMBERS, "frac_nonzero": NUMBER, "freq_hist_data_bar_values": NUMBERS,
    "freq_hist_data_bar_heights": NUMBERS, "logits_hist_data_bar_heights": NUMBERS,
    "logits_hist_data_bar_values": NUMBERS, "n_prompts_total": WHOLE, "n_tokens_in_prompt": WHOLE, "dataset": str,
    "activations": [dict], "decoder_weights_dist": NUMBERS, "vector": NUMBERS,
}  # fmt: skip
ACTIVATION = {
    "bin_min": NUMBER, "bin_max": NUMBER, "bin_contains": NUMBER, "tokens": STRINGS, "values": NUMBERS,
    "qualifying_token_index": WHOLE,
}  # fmt: skip


def conforms(row, schema):
    assert row.keys() == schema.keys()
    for name, kind in schema.items():
        for value in row[name] if isinstance(kind, list) else [row[name]]:
            assert isinstance(value, kind[0] if isinstance(kind, list) else kind), f"{name} is {value!r}"


def test_neuronpedia_gets_its_fields_and_our_numbers(tmp_path):
    z, tokens = dense(0, WINDOWS * LENGTH, 150), text()
    index, d = built(z, tokens, tmp_path / "index"), dictionary(150)
    unembedding = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(5))
    spell = lambda ids: [f"<{i}>" for i in ids]  # noqa: E731
    known = list(facts(index, d, unembedding))
    out = to_neuronpedia(index, d, iter(known), spell, tmp_path / "np", Source("m", 4, "fewer", None, "text"))
    batches = [json.loads((out / f"batch-{i}.json").read_text()) for i in range(2)]
    assert [len(b["features"]) for b in batches] == [128, 22] and len(list(out.iterdir())) == 2
    assert all(b.keys() == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"} for b in batches)
    for row, f in zip([row for b in batches for row in b["features"]], known, strict=True):
        conforms(row, FEATURE)
        assert row["feature_index"] == f.feature and row["pos_str"] == spell([t for t, _ in f.promoted])
        assert row["frac_nonzero"] == f.count / len(z) and sum(row["freq_hist_data_bar_heights"]) == f.count
        assert len(row["activations"]) == len(f.examples)
        for a, e in zip(row["activations"], f.examples, strict=True):
            conforms(a, ACTIVATION)
            assert len(a["tokens"]) == len(a["values"]) and e.first + a["qualifying_token_index"] == e.place
            peak = abs(a["values"][a["qualifying_token_index"]])
            assert peak <= a["bin_max"] + 1e-3 and (a["bin_min"] == -1 or peak >= a["bin_min"] - 1e-3)
            if a["bin_min"] != -1:
                size = np.abs(stored(z)[:, f.feature])
                inside = (size >= a["bin_min"]) & (size <= a["bin_max"])
                assert abs(a["bin_contains"] - inside.sum() / f.count) < 1e-9


class Blocks(HTMLParser):
    """The texts of the page's data scripts by name, and every address that the page would ask for."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.asked, self.name, self.tags = {}, [], None, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.name = found.get("id") if tag == "script" else None
        self.asked += [v for k, v in attrs if k in ("src", "href") and not (v or "").startswith("#")]

    def handle_data(self, data):
        if self.name:
            self.texts[self.name] = json.loads(zlib.decompress(base64.b64decode(data)))
            self.name = None


def column(table, name):
    kind, text = table["columns"][name]
    return np.frombuffer(base64.b64decode(text), {"I": "<u4", "f": "<f4", "B": "u1"}[kind])


def test_the_page_holds_the_facts_and_asks_for_nothing(tmp_path):
    z = dense(0, WINDOWS * LENGTH, 70)
    index, d = built(z, text(), tmp_path / "index"), dictionary(70)
    known = list(facts(index, d, torch.randn(VOCABULARY, 32)))
    spell = lambda ids: [f"</script>{i}&" for i in ids]  # noqa: E731
    path = explorer(tmp_path / "page.html", (f.plain() for f in known), spell, {"model": "<a> & b"}, "</title><x>")
    text_ = path.read_text(encoding="utf-8")
    page = Blocks(text_)
    assert (
        "{{" not in text_
        and page.asked == []
        and "x" not in page.tags
        and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text_)
    )
    assert "default-src 'none'" in text_ and "&lt;a&gt; &amp; b" in text_
    table = page.texts["table"]
    assert table["features"] == 70 and len(page.texts) == 4
    assert column(table, "count").tolist() == [f.count for f in known]
    assert np.allclose(column(table, "mean"), [f.mean for f in known])
    heard = column(table, "heard").reshape(70, table["heard"])
    word = dict(enumerate(table["words"]))
    for f in known:
        row = page.texts[f"block{f.feature // 32}"][f.feature % 32]
        heights, ends, said, promoted, suppressed, shown, near, together = row
        assert heights == list(f.histogram) and np.allclose(ends, [f.low, f.high], rtol=1e-3)
        for pairs, own in ((said, f.heard), (promoted, f.promoted), (suppressed, f.suppressed)):
            assert [word[i] for i, _ in pairs] == spell([t for t, _ in own])
        assert [i for i in heard[f.feature].tolist() if i != 0xFFFFFFFF] == [i for i, _ in said][: table["heard"]]
        for (quantile, place, first, tokens, sparse), e in zip(shown, f.examples, strict=True):
            values = np.zeros(len(tokens))
            values[sparse[::2]] = sparse[1::2]
            assert (quantile, place, first) == (e.quantile, e.place, e.first)
            assert [word[i] for i in tokens] == spell(e.tokens) and np.allclose(values, e.values, rtol=1e-3)
        assert [g for g, _ in near] == [g for g, _ in f.near]
        assert [(g, n) for g, _, n in together] == [(g, n) for g, _, _, n in f.together]


def test_a_page_that_fails_leaves_the_old_one(tmp_path):
    (tmp_path / "page.html").write_text("old")

    def broken():
        raise ValueError("no more")
        yield

    with pytest.raises(ValueError, match="no more"):
        explorer(tmp_path / "page.html", broken(), list, {}, "t")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"] and (tmp_path / "page.html").read_text() == "old"


def test_the_command_writes_page_index_and_exports(tmp_path, monkeypatch, capsys):
    learnt = dictionary(40, 256, reads=("model.layers.4",))
    monkeypatch.setattr(fewer.dictionaries, "load", lambda path: learnt, raising=False)
    monkeypatch.chdir(tmp_path)
    run = ["explore", "some", "--model", "bundled", "--tokens", "640", "--length", "64", "--out", "page.html", "--json"]
    assert main([*run, "--neuronpedia", "np", "--delphi", "cache"]) == 0
    row = json.loads(capsys.readouterr().out)
    page, index = Blocks((tmp_path / "page.html").read_text()), open_index(tmp_path / "page.index")
    assert row["features"] == page.texts["table"]["features"] == index.features == 40
    assert row["tokens"] == index.seen <= 640 and row["nonzeros"] == index.nonzeros <= 4 * index.seen
    assert (tmp_path / "np/batch-0.json").is_file() and len(list((tmp_path / "cache/model.layers.4").iterdir())) == 6
    assert main(run) == 2 and "page.html exists; write --force" in capsys.readouterr().err
    assert main([*run, "--force"]) == 0
    assert main(["explore", "some", "--out", "new.html"]) == 2 and "write --model" in capsys.readouterr().err
    assert main(["explore", "some", "--out", "new.txt"]) == 2 and "must end in .html" in capsys.readouterr().err
