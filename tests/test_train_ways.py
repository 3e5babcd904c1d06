"""The ways to learn a dictionary on the command line: for predictions, from a start, for another's error."""

import json

import pytest
import torch

from fewer.cli import main
from fewer.dictionaries import load, load_all

QUICK = ["--latents", "64", "--tokens", "512", "--length", "32", "--test", "2", "--json"]
SITE = ["--site", "layers.0"]


@pytest.fixture(scope="module", autouse=True)
def small_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewer.cli._train_dictionary.BATCH", 128)
        yield


def told(capsys, *arguments, code=0):
    assert main([*map(str, arguments)]) == code
    return capsys.readouterr()


def test_through_the_model_and_on_top_of_another(capsys, tmp_path):
    told(capsys, "train", "features/top_k", "8", *SITE, *QUICK, "-o", tmp_path / "sae")
    through = told(
        capsys,
        "train",
        "features/top_k",
        "8",
        *SITE,
        *QUICK,
        "--loss",
        "kl",
        "--from",
        tmp_path / "sae",
        "-o",
        tmp_path / "kl",
    )
    rows = [json.loads(line) for line in through.out.splitlines()]
    assert [row["step"] for row in rows[:4]] == [1, 2, 3, 4] and rows[4]["name"] == "dictionary" and "kl" in rows[4]
    sae, kl = load(tmp_path / "sae"), load(tmp_path / "kl")
    assert kl.reads == sae.reads == ("model.layers.0",) and kl.about["aim"] == "Kl()"
    assert not torch.equal(kl.decoder, sae.decoder)
    told(capsys, "train", "features/batch_top_k", "3", "--boost", tmp_path / "sae", *QUICK, "-o", tmp_path / "both")
    both = load(tmp_path / "both")
    assert both.latents == 128 and torch.equal(both.decoder[:64], sae.decoder) and both.reads == sae.reads
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".partial") == []


def test_neighbouring_layers_share_a_dictionary(capsys, tmp_path):
    groups = ["--site", "layers.0", "--site", "layers.1", "--site", "layers.2", "--groups", "2"]
    run = told(
        capsys, "train", "features/top_k", "8", *groups, *QUICK[:6], "--test", "1", "--json", "-o", tmp_path / "groups"
    )
    rows = [json.loads(line) for line in run.out.splitlines()]
    two = load_all(tmp_path / "groups")
    layers = [site for d in two for site in d.about["layers"]]
    assert len(two) == 2 and layers == [f"model.layers.{i}" for i in range(len(layers))] and len(layers) == 3
    judged = [row["reads"] for row in rows if row.get("name") == "dictionary"]
    assert judged == [[site] for site in layers], "each at each of its layers"
    assert "mean over groups of the largest angle" in run.err and two[0].reads == ()
    again = told(capsys, "judge", tmp_path / "groups", "--test", "1", "--json").out.splitlines()
    assert [row["l0"] for row in map(json.loads, again) if row["name"] == "dictionary"] == [8] * len(layers)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([*SITE, "--loss", "mse"], "--loss mse: write error, kl or ce"),
        ([*SITE, "--from", "x"], "--from goes with --loss kl or ce"),
        ([*SITE, "--boost", "x"], "--boost has the sites of its dictionary"),
        ([*SITE, "--groups", "2", "--skip"], "--groups reads several sites: without"),
        (["--site", "layers.*.nothing", "--groups", "2"], "--site layers.*.nothing: the model has no such modules"),
        (["--boost", "nowhere"], "nowhere: no such directory"),
    ],
)
def test_what_does_not_fit_is_a_sentence(capsys, tmp_path, options, says):
    assert says in told(capsys, "train", "features/top_k", "8", *options, "-o", tmp_path / "x", code=2).err
