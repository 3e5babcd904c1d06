"""`fewer train features/...` from a store, from arrays, and by several processes: what it learns is what Python learns."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_crew import ended, start

from fewer.cli import main
from fewer.core import budget
from fewer.dictionaries import load
from fewer.features.top_k import TopK
from fewer.train import Lesson, Pupil, Rows, Stored, learn

QUICK = ["--latents", "64", "--tokens", "512"]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    monkeypatch.setattr("fewer.cli._train_dictionary.BATCH", 128)


def told(capsys, *arguments, code=0):
    assert main([*map(str, arguments)]) == code
    return capsys.readouterr()


def rows(n=2000):
    make = torch.Generator().manual_seed(0)
    return (
        torch.rand(n, 20, generator=make)
        * (torch.rand(n, 20, generator=make) < 0.2)
        @ torch.randn(20, 8, generator=make)
    )


def test_a_store_is_learnt_from_and_judged_on_its_model(capsys, tmp_path):
    sites = ["--site", "layers.0", "--site", "layers.1"]
    told(capsys, "activations", "bundled", *sites, "--tokens", "2048", "--length", "64", "-o", tmp_path / "store")
    out, asked = tmp_path / "sae", ["--store", tmp_path / "store", "--site", "layers.1", "--test", "2", "--json"]
    said = told(capsys, "train", "features/top_k", "8", *asked, *QUICK, "-o", out).out.splitlines()
    names = [json.loads(line).get("name") for line in said]
    assert names == [None] * 4 + ["dictionary", "random", "pca", "dense"]
    found, source = load(out), Stored(tmp_path / "store", 128)
    (truth,) = learn([Pupil(TopK(), budget("8"), 64, 0, ("model.layers.1",))], source, Lesson(4), source.sites)
    assert torch.equal(found.decoder, truth.decoder) and found.reads == ("model.layers.1",)
    assert found.about["model"] == "bundled" and found.about["length"] == 64
    bad = told(
        capsys,
        "train",
        "features/top_k",
        "8",
        "--store",
        tmp_path / "store",
        "--site",
        "layers.7",
        "-o",
        tmp_path / "b",
        code=2,
    )
    assert "site 'layers.7': the store holds model.layers.0, model.layers.1; write one of them" in bad.err


@pytest.mark.parametrize("kind", [".npy", ".safetensors"])
def test_an_array_is_learnt_from_and_judged_on_rows_that_were_left(capsys, tmp_path, kind):
    x = rows()
    np.save(tmp_path / "x.npy", x.numpy()) if kind == ".npy" else save_file({"rows": x}, tmp_path / "x.safetensors")
    out = tmp_path / "sae"
    run = [
        "train",
        "features/top_k",
        "4",
        "--store",
        tmp_path / f"x{kind}",
        *QUICK,
        "--tokens",
        "25600",
        "-o",
        out,
        "--json",
    ]
    said = [json.loads(line) for line in told(capsys, *run).out.splitlines()][200:]
    (truth,) = learn([Pupil(TopK(), budget("4"), 64)], Rows(x[:-400], 128), Lesson(200))
    found, left = load(out), x[-400:]
    assert torch.equal(found.decoder, truth.decoder)
    fvu = ((found(left) - left).double().square().sum() / (left - left.mean(0)).double().square().sum()).item()
    assert [row["name"] for row in said] == ["dictionary", "random", "pca"]
    assert said[0]["fvu"] == pytest.approx(fvu, rel=1e-3) and said[0]["fvu"] < said[1]["fvu"] / 2


def spoilt(place):
    np.save(place / "flat.npy", np.zeros(500))
    np.save(place / "words.npy", np.array([["a"] * 3] * 500))
    np.save(place / "few.npy", np.zeros((100, 3), np.float32))
    np.save(place / "objects.npy", np.array([{"a": 1}] * 3, dtype=object), allow_pickle=True)
    (place / "cut.npy").write_bytes((place / "flat.npy").read_bytes()[:300])
    save_file({"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}, place / "two.safetensors")
    (place / "x.csv").write_text("1,2")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["flat.npy"], "real numbers [rows, columns] expected"),
        (["words.npy"], "real numbers [rows, columns] expected"),
        (["few.npy"], "holds 100 rows: at least 161 are needed"),
        (["objects.npy"], "Python objects in dtype"),
        (["cut.npy"], "cannot be read"),
        (["two.safetensors"], "it holds 2 tensors (a, b), not one"),
        (["x.csv"], "ends neither in .npy nor in .safetensors"),
        (["none"], "no such store; give a directory of `fewer activations`"),
        (["flat.npy", "--site", "layers.0"], "is an array, which has no sites"),
        (["flat.npy", "--share", "all"], "--share all: write rows or latents"),
    ],
)
def test_what_is_no_store_is_a_sentence(capsys, tmp_path, arguments, says):
    spoilt(tmp_path)
    name, *more = arguments
    heard = told(
        capsys,
        "train",
        "features/top_k",
        "2",
        "--store",
        tmp_path / name,
        *more,
        *QUICK,
        "-o",
        tmp_path / "out",
        code=2,
    )
    assert says in heard.err and not (tmp_path / "out").exists()


SHARED = """
import sys
import fewer.cli._train_dictionary as door
from fewer.cli import main
door.BATCH = 128
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("share", ["rows", "latents"])
def test_processes_of_torchrun_learn_what_one_does(capsys, tmp_path, share):
    np.save(tmp_path / "x.npy", rows().numpy())
    run = ["train", "features/top_k", "4", "--store", str(tmp_path / "x.npy"), *QUICK, "--share", share]
    ended(start(SHARED, *run, "-o", str(tmp_path / "two"), "--json"))
    told(capsys, *run, "-o", tmp_path / "one")
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert torch.allclose(one.decoder, two.decoder, atol=1e-5) and torch.allclose(one.encoder, two.encoder, atol=1e-5)
    assert len((tmp_path / "two.jsonl").read_text().splitlines()) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "one.jsonl", "two", "two.jsonl", "x.npy"]
