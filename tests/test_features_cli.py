"""The features axis on the command line: learn, judge, look; what does not fit is refused before any work."""

import contextlib
import io
import json
import re
from dataclasses import replace

import pytest
import torch
from tiny import build

from fewer.cli import main
from fewer.cli.judge import HEAD, columns, meaning
from fewer.core import budget
from fewer.dictionaries import load, save
from fewer.dictionaries.fit import fit
from fewer.dictionaries.judge import judge
from fewer.features import Dictionary
from fewer.features.kronecker import Kronecker
from fewer.features.top_k import TopK
from fewer.models.tap import Tap, activations
from fewer.train import Live, Rows

QUICK = ["--latents", "64", "--tokens", "512", "--length", "32", "--test", "2"]
SAE = ["train", "features/top_k", "8", "--site", "layers.0", *QUICK]


def small(
    reads: tuple[str, ...], writes: tuple[str, ...] = (), into: int = 32, out: int = 32, **about: object
) -> Dictionary:
    make = torch.Generator().manual_seed(0)
    matrices = torch.randn(24, into, generator=make), torch.zeros(24), torch.randn(24, out, generator=make)
    return Dictionary(
        TopK(), budget("3"), *matrices, torch.zeros(out), reads=reads, writes=writes or reads, about=about
    )


def told(capsys, *arguments: str, code: int = 0):
    assert main([*arguments]) == code
    return capsys.readouterr()


@pytest.fixture(scope="module", autouse=True)
def small_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewer.cli._train_dictionary.BATCH", 128)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Where it was learnt, and what was printed."""
    out, said, noted = tmp_path_factory.mktemp("learnt") / "sae", io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(noted):
        assert main([*SAE, "-o", str(out)]) == 0
    return out, said.getvalue(), noted.getvalue()


@pytest.fixture
def learnt(run):
    return run[0]


def test_train_writes_judges_and_leaves_nothing_half_done(capsys, run):
    out, printed, noted = run
    assert sorted(p.name for p in out.parent.iterdir()) == ["sae", "sae.jsonl"], "no sae.partial"
    head, *table = printed.splitlines()
    assert [line.split()[0] for line in table] == ["dictionary", "random", "pca", "dense"]
    ways = [*"↓↑↑↑↓↓↓↓"]
    assert re.split(r"\s\s+", head)[1:] == [
        f"{name} {way}" for name, way in zip([*HEAD.values()][1:], ways, strict=True)
    ]
    assert "64 latents for model.layers.0: 4 steps of 128 tokens, from a text of " in noted
    assert noted.index("written: ") < noted.index("judging"), "nothing is lost if judging is interrupted"
    assert "all but [0]: 64 of 64 tokens" in noted and "test part" in noted
    again = [json.loads(x) for x in told(capsys, "judge", str(out), "--test", "2", "--json").out.splitlines()]
    assert [row["name"] for row in again] == ["dictionary", "random", "pca", "dense"]
    assert columns(again)[1][:3] == [re.split(r"\s\s+", line) for line in table[:3]]
    assert again[0]["data"] == "stdlib" and again[0]["reads"] == ["model.layers.0"]


def test_encoder_decoder_start_and_hidden_columns_are_options(capsys, tmp_path):
    forms = [
        "--encoder",
        "features/kronecker(m=2, n=4)",
        "--start",
        "features/subspace",
        "--hide",
        "0.1",
        "--test",
        "0",
    ]
    told(capsys, *SAE, "-o", str(tmp_path / "a"), *forms)
    assert load(tmp_path / "a").how == Kronecker(2, 4)
    told(capsys, *SAE, "-o", str(tmp_path / "b"), "--decoder", "features/archetypal(points=16)", "--test", "0")
    assert load(tmp_path / "b").own["mix"].shape == (64, 16)
    told(capsys, *SAE[:1], "features/gradient_top_k", *SAE[2:], "-o", str(tmp_path / "c"), "--test", "0")
    assert load(tmp_path / "c").encoder.shape == (64, 256)
    said = told(capsys, *SAE, "-o", str(tmp_path / "d"), "--encoder", "features/subspace", code=2).err
    assert "--encoder features/subspace: this is no encoder" in said and not (tmp_path / "d").exists()


def test_a_transcoder_is_judged_where_it_writes(capsys, tmp_path):
    sites = ["--site", "layers.0.mlp:in", "--to", "layers.0.mlp", "--skip"]
    run = ["train", "features/top_k", "8", *sites, "-o", str(tmp_path / "t"), *QUICK, "--json"]
    rows = [json.loads(line) for line in told(capsys, *run).out.splitlines()]
    assert [row["step"] for row in rows[:4]] == [1, 2, 3, 4] and len(rows) == 8
    assert rows[4]["reads"] == ["model.layers.0.mlp:in"] and rows[4]["writes"] == ["model.layers.0.mlp"]
    assert all(key in rows[4] for key in ("explained", "delta_ce_low", "kl", "dead"))


def test_seeds_are_judged_together_with_an_interval_over_them(capsys, tmp_path):
    """Student's interval by hand: mean +- 4.3027 s / sqrt(3) of the three rows above it."""
    out = tmp_path / "three"
    run = ["train", "features/top_k", "8", "--site", "layers.0", *QUICK, "--seeds", "3", "-o", str(out), "--json"]
    rows = [json.loads(line) for line in told(capsys, *run).out.splitlines()][4:]
    assert [row["name"] for row in rows] == ["seed 0", "seed 1", "seed 2", "mean", "random", "pca", "dense"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["three", "three.jsonl"]
    *each, found = rows[:4]
    for name in ("explained", "delta_ce", "dead", "kl"):
        x = torch.tensor([row[name] for row in each], dtype=torch.float64)
        half = 4.302653 * x.std().item() / 3**0.5
        assert found[name] == pytest.approx(x.mean().item())
        assert found[f"{name}_high"] - found[name] == pytest.approx(half, rel=1e-4)
    assert 0 <= found["stability"] < 1 and found["seeds"] == 3 and found["better"]["stability"] == "higher"
    apart = [str(out / str(i)) for i in range(3)]
    again = told(capsys, "judge", *apart, "--test", "2")
    assert [line.split()[0] for line in again.out.splitlines()[1:]] == [
        "seed",
        "seed",
        "seed",
        "mean",
        "random",
        "pca",
        "dense",
    ]
    assert "over 3 seeds, 95 % interval of Student" in again.err and "Hungarian" in again.err
    both = [
        json.loads(x)["name"]
        for x in told(capsys, "judge", apart[0], apart[0], "--test", "2", "--json").out.splitlines()
    ]
    assert both == ["dictionary", "random", "pca", "dense"] * 2, "the same twice is no second seed"


def test_interrupted_judging_loses_nothing(capsys, tmp_path, monkeypatch, learnt):
    def stop(*args: object, **kwargs: object):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewer.cli._train_ways.learn", lambda *args, **kwargs: [load(learnt)])
    monkeypatch.setattr("fewer.dictionaries.judge.judge", stop)
    out = tmp_path / "sae"
    (tmp_path / "sae.partial").write_text("what a run that was killed had learnt")
    told(capsys, *SAE, "-o", str(out), code=130)
    assert load(out).latents == 64 and [p.name for p in tmp_path.iterdir()] == ["sae"]


def test_what_cannot_be_put_in_is_explained_and_the_rest_is_said():
    model = build("llama")
    cross = small(("layers.0", "layers.1"), into=64, out=64)
    rows = judge(cross, model, torch.randint(3, 99, (3, 8)))
    late = "model.layers.0 is written before model.layers.1 is heard"
    assert all("delta_ce" not in row and row["missing"] == late for row in rows) and rows[0]["l0"] == 3
    head, _ = columns(rows)
    assert head == ["", "L0 ↓", "explained ↑", "dead latents ↓", "dense latents ↓"]
    assert f"no CE and no KL: {late}, so it cannot be put into one run of the model" in meaning(
        rows, cross, "x", (3, 8)
    )


def test_the_pace_of_judging_is_told():
    heard = []
    judge(small(("layers.0",)), build("llama"), torch.randint(3, 99, (3, 8)), told=lambda *at: heard.append(at))
    assert heard == [(i, 10) for i in range(1, 11)]


def test_dense_is_what_the_model_says_alone():
    model = build("llama")
    rows = {row["name"]: row for row in judge(small(("layers.0",)), model, torch.randint(3, 99, (3, 8)))}
    dense, ours = rows["dense"], rows["dictionary"]
    assert dense["delta_ce"] == dense["kl"] == 0 and dense["explained"] == 1
    assert ours["ce"] - dense["ce"] == pytest.approx(ours["delta_ce"])
    for name in ("zero", "mean"):
        if f"recovered_{name}" in ours:
            lost = dense[f"ce_{name}"] - dense["ce"]
            assert ours[f"recovered_{name}"] == pytest.approx(1 - ours["delta_ce"] / lost, abs=1e-6)


FITS = [
    ({"reads": (), "writes": ()}, "names no sites"),
    ({"reads": ("layers.9",)}, "no module 'layers.9'; near: model.layers.1"),
    ({"reads": ("layers.1.mlp.down_proj:in",)}, r"down_proj:in: 48 numbers a token, the dictionary reads 32"),
    (
        {"writes": ("layers.1.mlp.up_proj",)},
        r"up_proj: 48 numbers a token, the dictionary writes 32; it was learnt on x",
    ),
]


@pytest.mark.parametrize(("change", "says"), FITS, ids=[says for _, says in FITS])
def test_a_dictionary_of_another_model_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        fit(replace(small(("layers.0",), model="x"), **change), build("llama"))


def test_nan_is_named_with_its_batch_and_site():
    model = build("llama")
    model.model.embed_tokens.weight.data[7] = torch.nan
    ids = torch.full((4, 8), 5)
    ids[2, 3] = 7
    with pytest.raises(ValueError, match=r"site model.layers.0: NaN or infinite at \[window, token\] \[2, 0\]"):
        activations(model, [Tap("model.layers.0")], ids)
    source = Live(model, [Tap("model.layers.0")], ids, batch=8, pool=2)
    with pytest.raises(ValueError, match=r"batches \d to \d: site model.layers.0: NaN"):
        list(zip(source, range(4), strict=False))
    rows = torch.zeros(20, 4)
    rows[13, 2] = torch.inf
    with pytest.raises(ValueError, match=r"batch [0-4]: row 13 of the data is NaN or infinite"):
        list(zip(Rows(rows, 4), range(5), strict=False))
    with pytest.raises(ValueError, match="batch 0 of the text, site model.layers.0: an activation is NaN"):
        judge(small(("layers.0",)), model, ids)


def train(*arguments: str) -> list[str]:
    return ["train", "features/top_k", "8", "-o", "OUT", *arguments]


BAD = [
    (train(), "--site is missing"),
    (train("--site", "layers.77"), "the model has no module 'layers.77'; near: model.layers.7"),
    (
        train("--site", "blocks.4.hook_resid_post"),
        "TransformerLens' name of a place in a model of this kind; that is 'model.layers.4' here",
    ),
    (train("--site", "layers.4", "--latents", "4"), "budget '8' of 4 latents: keep at most 4"),
    (train("--site", "layers.4", "--data", "HERE/short.txt"), "ask for windows of at most"),
    (train("--site", "layers.4", "--data", "HERE/long.txt", "--test", "1000", "--length", "64"), "ask for at most"),
    (["judge", "HERE/none"], "no such directory"),
    (["judge", "HERE/empty"], "holds no dictionary; one is known by its files: fewer: dictionary.json"),
    (["judge", "HERE/cut"], "dictionary.safetensors cannot be read"),
    (["judge", "HERE/changed"], "probes come out otherwise than when it was written"),
    (
        ["judge", "HERE/narrow"],
        "model.layers.1: 256 numbers a token, the dictionary reads 32; it was learnt on bundled",
    ),
    (["judge", "HERE/other"], "the model has no module 'h.1'; near: "),
    (["judge", "HERE/nameless"], "does not say which model it was learnt on: write --model"),
    (["judge", "HERE/nameless", "--model", "bundled"], "names no sites: say what it reads (--site layers.4"),
    (["explore", "HERE/empty", "--out", "OUT.html"], "holds no dictionary"),
    (["explore", "HERE/cut", "--out", "OUT.html"], "dictionary.safetensors cannot be read"),
    (["explore", "HERE/narrow", "--out", "OUT.html"], "256 numbers a token, the dictionary reads 32"),
    (["explore", "HERE/other", "--out", "OUT.html"], "the model has no module 'h.1'"),
]


@pytest.mark.parametrize(("arguments", "says"), BAD, ids=[says for _, says in BAD])
def test_bad_input_is_a_sentence_before_any_work(capsys, tmp_path, learnt, monkeypatch, arguments, says):
    def work(*args: object, **kwargs: object):
        raise AssertionError("work was begun")

    for place in ("fewer.train.learn", "fewer.dictionaries.judge.judge", "fewer.dictionaries.explore.indexed"):
        monkeypatch.setattr(place, work)
    (tmp_path / "short.txt").write_text("x = 1\n" * 8)
    (tmp_path / "long.txt").write_text("x = 1\n" * 9000)
    (tmp_path / "empty").mkdir()
    for name in ("cut", "changed"):
        copied = save(load(learnt), tmp_path / name) / "dictionary.safetensors"
        whole = copied.read_bytes()
        copied.write_bytes(whole[: len(whole) // 2] if name == "cut" else whole[:-9000] + bytes(9000))
    save(small(("model.layers.1",), model="bundled"), tmp_path / "narrow")
    save(small(("h.1",), model="bundled"), tmp_path / "other")
    save(small(()), tmp_path / "nameless")
    there = [a.replace("HERE", str(tmp_path)).replace("OUT", str(tmp_path / "out")) for a in arguments]
    heard = told(capsys, *there, code=2)
    assert heard.out == "" and heard.err.startswith("fewer: ") and says in heard.err
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("out")]


def test_a_steering_is_written_and_heard_without_its_dictionary(capsys, tmp_path, learnt):
    place, ask = tmp_path / "steering", ["--prompt", "import ", "--tokens", "8", "--json"]
    first = told(capsys, "steer", str(learnt), "--edit", "add 7 40", "--edit", "add 9 -30", "-o", str(place), *ask)
    assert "latents 7, 9 of dictionary" in first.err
    again = told(capsys, "steer", str(place), *ask)
    plain, steered = (json.loads(line) for line in again.out.splitlines())
    assert again.out == first.out and plain["text"] != steered["text"] and plain["text"].startswith("import ")
    assert sum(f.stat().st_size for f in place.iterdir()) < sum(f.stat().st_size for f in learnt.iterdir()) / 10
    bad = (
        (
            [str(learnt), "--edit", "louder 7 4", "-o", "x"],
            "write one of add, set, scale-when-active, clamp-when-active",
        ),
        ([str(learnt), "--edit", "add 64 4", "-o", "x"], "latent 64: the dictionary has 0 to 63"),
        ([str(learnt), "-o", "x"], "write 'add 7 4'"),
        ([str(place), "--edit", "add 7 4"], "a steering has its edits"),
        ([str(place)], "nothing to do"),
        ([str(learnt), "--edit", "add 7 4", "-o", str(place)], "exists"),
    )
    for arguments, says in bad:
        assert says in told(capsys, "steer", *arguments, code=2).err


def test_a_site_can_be_named_for_a_dictionary_that_names_none(capsys, tmp_path, run):
    save(replace(load(run[0]), reads=(), writes=(), about={}), tmp_path / "nameless", format="saelens")
    site = ["--model", "bundled", "--site", "layers.0", "--test", "2", "--length", "32"]
    assert told(capsys, "judge", str(tmp_path / "nameless"), *site).out == run[1], "of others too, and no other number"
