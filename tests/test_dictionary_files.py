"""Dictionaries on disk: what was saved comes back, SAELens' and sparsify's formulas are theirs, and what is wrong is a sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewer.core import budget
from fewer.dictionaries import load, save
from fewer.features import Dictionary
from fewer.features.abs_top_k import AbsTopK
from fewer.features.batch_top_k import BatchTopK
from fewer.features.jump_relu import JumpRelu
from fewer.features.matryoshka import Matryoshka
from fewer.features.relu_l1 import ReluL1
from fewer.features.top_k import TopK

N, D = 24, 8
X = torch.randn(30, D, generator=torch.Generator().manual_seed(3))
THRESHOLD = {"threshold": torch.linspace(0.1, 0.9, N)}


def some(sparsifier, own=None, out=D, skip=None, sites=("model.layers.4",), writes=None):
    make = torch.Generator().manual_seed(0)
    encoder, decoder = torch.randn(N, D, generator=make), torch.randn(N, out, generator=make)
    bias, said = torch.randn(N, generator=make), torch.randn(out, generator=make)
    return Dictionary(
        sparsifier,
        budget("5"),
        encoder,
        bias,
        decoder,
        said,
        own or {},
        skip,
        sites,
        writes or sites,
        {"model": "gpt2", "seed": 0},
    )


EACH = {
    "topk": some(TopK()),
    "abstopk": some(AbsTopK()),
    "jumprelu": some(JumpRelu(), THRESHOLD),
    "batch": some(BatchTopK(), {"threshold": torch.tensor(0.4)}),
    "standard": some(ReluL1()),
    "transcoder": some(ReluL1(), out=6, sites=("model.layers.4.mlp:in",), writes=("model.layers.4.mlp",)),
    "skip": some(
        JumpRelu(),
        THRESHOLD,
        out=6,
        skip=torch.ones(6, D),
        sites=("model.layers.4.mlp:in",),
        writes=("model.layers.4.mlp",),
    ),
}


def same(a, b):
    assert torch.allclose(a(X), b(X), atol=1e-5)


@pytest.mark.parametrize("name", [*EACH, "nested"])
def test_ours_comes_back_to_the_bit(tmp_path, name):
    d = some(Matryoshka((0.3, 1.0)), {"threshold": torch.tensor(0.4)}) if name == "nested" else EACH[name]
    again = load(save(d, tmp_path / "d"))
    assert all(torch.equal(t, again.tensors()[key]) for key, t in d.tensors().items())
    assert (again.sparsifier, again.budget, again.reads, again.writes) == (d.sparsifier, d.budget, d.reads, d.writes)
    assert torch.equal(d(X), again(X)) and again.about == d.about


@pytest.mark.parametrize("name", EACH)
def test_sae_lens_there_and_back(tmp_path, name):
    save(EACH[name], tmp_path / "s", format="saelens")
    same(EACH[name], load(tmp_path / "s"))
    cfg = json.loads((tmp_path / "s" / "cfg.json").read_text())
    assert cfg["metadata"]["sae_lens_version"] >= "6" and not cfg["apply_b_dec_to_input"]


@pytest.mark.parametrize("rescale", [False, True])
def test_sae_lens_top_k_is_its_formula(tmp_path, rescale):
    """z = TopK((x - b_dec) W_enc + b_enc), ranked and told in units of the decoder's rows if it rescales; x_hat = z W_dec + b_dec."""
    make = torch.Generator().manual_seed(1)
    t = {"W_enc": torch.randn(D, N, generator=make), "W_dec": torch.randn(N, D, generator=make)}
    t |= {"b_enc": torch.randn(N, generator=make), "b_dec": torch.randn(D, generator=make)}
    cfg = {
        "architecture": "topk",
        "d_in": D,
        "d_sae": N,
        "k": 4,
        "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": rescale,
    }
    cfg["metadata"] = {"hook_name": "blocks.8.hook_resid_post", "model_name": "gpt2"}
    (tmp_path / "s").mkdir()
    save_file(t, tmp_path / "s" / "sae_weights.safetensors")
    (tmp_path / "s" / "cfg.json").write_text(json.dumps(cfg))
    wide = {key: v.double() for key, v in t.items()}
    norm = wide["W_dec"].norm(dim=1) if rescale else 1.0
    pre = ((X.double() - wide["b_dec"]) @ wide["W_enc"] + wide["b_enc"]) * norm
    z = torch.zeros_like(pre).scatter(1, pre.topk(4).indices, pre.topk(4).values.relu())
    truth = (z / norm) @ wide["W_dec"] + wide["b_dec"]
    d = load(tmp_path / "s")
    assert torch.allclose(d(X).double(), truth, atol=1e-5) and d.reads == ("transformer.h.8",)


def test_sparsify_is_its_formula_and_comes_back(tmp_path):
    """z = TopK((x - b_dec) W^T + b), x_hat = z W_dec + b_dec; `num_latents` may be 0."""
    d = EACH["topk"]
    save(d, tmp_path / "layers.4", format="sparsify")
    same(d, load(tmp_path / "layers.4"))
    t = {key: v.double() for key, v in load_file(tmp_path / "layers.4" / "sae.safetensors").items()}
    pre = (X.double() - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]
    z = torch.zeros_like(pre).scatter(1, pre.topk(5).indices, pre.topk(5).values.relu())
    assert torch.allclose(d(X).double(), z @ t["W_dec"] + t["b_dec"], atol=1e-5)
    cfg = json.loads((tmp_path / "layers.4" / "cfg.json").read_text())
    (tmp_path / "layers.4" / "cfg.json").write_text(json.dumps({**cfg, "num_latents": 0}))
    same(d, load(tmp_path / "layers.4"))


def test_what_is_there_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    save(EACH["topk"], tmp_path / "d")
    with pytest.raises(ValueError, match="force=True"):
        save(EACH["abstopk"], tmp_path / "d")
    monkeypatch.setattr("fewer.dictionaries._disk.save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(EACH["abstopk"], tmp_path / "d", force=True)
    same(EACH["topk"], load(tmp_path / "d"))
    monkeypatch.undo()
    save(EACH["abstopk"], tmp_path / "d", force=True)
    same(EACH["abstopk"], load(tmp_path / "d"))
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def edit(folder, **changes):
    note = json.loads((folder / "dictionary.json").read_text())
    (folder / "dictionary.json").write_text(json.dumps({**note, **changes}))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: edit(f, format=99), "written by a newer version"),
        (lambda f: edit(f, budget=5), "'budget' must be of type str"),
        (lambda f: edit(f, sparsifier="weights/wanda"), "no method of the axis features"),
        (lambda f: (f / "dictionary.safetensors").write_bytes(b"torn"), "cannot be read"),
        (lambda f: (f / "dictionary.json").unlink(), "holds no dictionary"),
        (lambda f: edit(f, sparsifier="features/relu_l1"), "probes come out otherwise than when it was written"),
    ],
)
def test_what_is_wrong_on_disk_is_a_sentence(tmp_path, harm, says):
    folder = save(EACH["topk"], tmp_path / "d")
    harm(folder)
    with pytest.raises(ValueError, match=says):
        load(folder)


def test_what_others_cannot_hold_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="no place for features/batch_top_k, while it has no fitted threshold"):
        save(some(BatchTopK()), tmp_path / "s", format="saelens")
    with pytest.raises(ValueError, match="no place for features/abs_top_k but for features/top_k"):
        save(EACH["abstopk"], tmp_path / "s", format="sparsify")
    with pytest.raises(ValueError, match="no such directory"):
        load(tmp_path / "nowhere")
