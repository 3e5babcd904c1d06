"""Saving and loading dictionaries: to the bit, whole or not at all, checked against a probe, and refused with a reason."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewer.core import budget, find, methods
from fewer.dictionaries import load, load_all, save
from fewer.dictionaries._probe import probing
from fewer.dictionaries.doors import FORMS
from fewer.features import Dictionary, Sparsifier
from fewer.features.jump_relu import JumpRelu
from fewer.features.top_k import TopK
from fewer.models.hook_names import hook_of, path_of

DIM, LATENTS = 6, 20
OWN = {
    "jump_relu": {"threshold": (LATENTS,)},
    "gated": {"scale": (LATENTS,), "shift": (LATENTS,), "log_weight": ()},
    "relu_l1": {"log_weight": ()},
    "batch_top_k": {"threshold": ()},
    "matryoshka": {"threshold": ()},
    "feature_choice": {"threshold": (LATENTS,)},
}
BECOME = {"hierarchical_top_k": "top_k", "feature_choice": "jump_relu"}  # elsewhere than here
JUMPS = ("jump_relu", "batch_top_k", "matryoshka", "feature_choice", "relu_l1")
HOLD = {  # form -> the sparsifiers that it has a place for
    "fewer": tuple(n.removeprefix("features/") for n in methods("features") if issubclass(find(n), Sparsifier)),
    "saelens": (*JUMPS, "top_k", "hierarchical_top_k", "abs_top_k", "gated"),
    "sparsify": ("top_k", "hierarchical_top_k"),
    "dictionary_learning": (*JUMPS, "top_k", "hierarchical_top_k", "gated"),
    "gemma_scope": JUMPS,
    "gemma_scope_2": JUMPS,
    "llama_scope": ("batch_top_k", "matryoshka", "relu_l1"),
    "circuit_tracer": JUMPS,
    "circuit_tracer_clt": JUMPS,
    "llamascopium": (*JUMPS, "top_k", "hierarchical_top_k"),
}
SOME = [name for name in HOLD["fewer"] if name in OWN or name in ("top_k", "abs_top_k", "hierarchical_top_k", "random")]


def learnt(name="top_k", skip=False, kept="3", **more):
    make = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=make)

    own = {key: draw(*shape).abs() for key, shape in OWN.get(name, {}).items()}
    matrices = draw(LATENTS, DIM), draw(LATENTS), draw(LATENTS, DIM), draw(DIM)
    d = Dictionary(find(f"features/{name}")(), budget(kept), *matrices, own, draw(DIM, DIM) if skip else None)
    return replace(d, **{"reads": ("model.layers.0",), "writes": ("model.layers.0",), "about": {"seed": 3}} | more)


def coder(name="jump_relu", **more):
    return learnt(name, **{"reads": ("model.layers.0.mlp:in",), "writes": ("model.layers.0.mlp",)} | more)


def same(a, b):
    return a.tensors().keys() == b.tensors().keys() and all(
        torch.equal(b.tensors()[k], t) for k, t in a.tensors().items()
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SOME)
def test_what_comes_back_is_the_same_to_the_bit_or_it_is_refused_before_anything_is_written(form, name, tmp_path):
    d = learnt(name)
    if name not in HOLD[form]:
        with pytest.raises(ValueError, match=f"form '{form}' has no"):
            save(d, tmp_path / "d", format=form)
        assert not list(tmp_path.iterdir())
        return
    save(d, tmp_path / "d", format=form)
    again, x = load(tmp_path / "d"), torch.randn(30, DIM)
    assert same(d, again)
    assert torch.equal(again.encode(x).dense(), d.encode(x).dense()) and torch.equal(again(x), d(x))
    if form == "fewer":
        assert (again.sparsifier, again.budget, again.about) == (d.sparsifier, d.budget, d.about)
        assert again.own.keys() == d.own.keys() and all(torch.equal(again.own[k], t) for k, t in d.own.items())
    if form not in ("sparsify", "gemma_scope"):
        assert again.reads == d.reads and again.writes == d.writes
    elsewhere = save(again, tmp_path / "home")  # what came from others is kept here
    assert same(load(elsewhere), again) and load(elsewhere).about == again.about


@pytest.mark.parametrize("form", ["fewer", "saelens", "gemma_scope_2", "circuit_tracer", "circuit_tracer_clt"])
def test_transcoders_keep_their_skip_connection_and_both_places(form, tmp_path):
    for d in (coder(), coder(skip=True)):
        again = load(save(d, tmp_path / f"{d.skip is None}", format=form))
        assert same(d, again) and again.writes == d.writes and again.reads == d.reads and not again.is_autoencoder


def test_our_form_keeps_every_field_dtype_and_setting(tmp_path):
    d = replace(learnt(kept="10% per tensor").to(torch.bfloat16), sparsifier=JumpRelu(bandwidth=0.25))
    d = replace(d, own={"threshold": torch.rand(LATENTS).bfloat16()}, about={"words": ["a", None], "n": {"x": 1.5}})
    again = load(save(d, tmp_path / "d"))
    assert same(d, again) and again.encoder.dtype == torch.bfloat16
    assert again.sparsifier == d.sparsifier and again.budget == d.budget and again.about == d.about
    note = json.loads((tmp_path / "d" / "dictionary.json").read_text())
    assert note["sparsifier"] == "features/jump_relu(bandwidth=0.25)" and note["budget"] == "10% per tensor"


def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch):
    d, out = learnt(), tmp_path / "d"
    save(d, out)
    with pytest.raises(ValueError, match="force=True"):
        save(d, out)

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewer.dictionaries.doors.write_probe", dies)
    with pytest.raises(KeyboardInterrupt):
        save(learnt(skip=True), out, force=True)
    assert same(load(out), d) and [f.name for f in tmp_path.iterdir()] == ["d"]
    monkeypatch.undo()
    (tmp_path / ".d.part").mkdir()  # what a killed run leaves
    save(learnt(skip=True), out, force=True, format="fewer")
    assert load(out).skip is not None and [f.name for f in tmp_path.iterdir()] == ["d"]


def test_force_replaces_dictionaries_alone(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "love.txt").write_text("dear")
    with pytest.raises(ValueError, match="is no dictionary, so it is not replaced"):
        save(learnt(), tmp_path / "letters", force=True)
    assert (tmp_path / "letters" / "love.txt").is_file()
    with pytest.raises(ValueError, match="is no directory to write d in"):
        save(learnt(), tmp_path / "nowhere" / "d")
    with pytest.raises(LookupError, match="no form 'onnx'; there are: fewer, saelens"):
        save(learnt(), tmp_path / "d", format="onnx")


@pytest.mark.parametrize("form", [form for form in FORMS if form != "gemma_scope" and form != "dictionary_learning"])
def test_a_probe_notices_one_changed_matrix(form, tmp_path):
    out = save(learnt("relu_l1" if "relu_l1" in HOLD[form] else "top_k"), tmp_path / "d", format=form)
    file = max((f for f in out.rglob("*.safetensors") if f.name != "probe.safetensors"), key=lambda f: f.stat().st_size)
    t = load_file(file)
    name = max(t, key=lambda n: t[n].numel())
    save_file(t | {name: t[name] * 1.01}, file)
    with pytest.raises(ValueError, match="[78] of 8 probes come out otherwise"):
        load(out)
    assert load(out, verify=False).latents == LATENTS


@pytest.mark.parametrize("name", ["jump_relu", "top_k", "gated"])
def test_at_a_probe_somebody_speaks(name):
    d = learnt(name)
    quiet = replace(d, encoder_bias=d.encoder_bias - 100)  # as when a large mean is folded in
    assert ((quiet.encode(probing(quiet)).value != 0).sum(1) >= 1).all()


def broken(out, field, value):
    file = out / "dictionary.json"
    note = json.loads(file.read_text())
    file.write_text(json.dumps(note | {field: value}))


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("format", 99, "written by a newer version .format 99, this one reads 1.; update fewer"),
        ("sparsifier", "features/top_kk", "no method 'features/top_kk'; close: features/top_k"),
        ("sparsifier", "weights/wanda", "is no method of the axis features"),
        ("sparsifier", "features/top_k(a=1)", "has no field 'a'"),
        ("sparsifier", "features/jump_relu", "has learnt is missing"),
        ("budget", "half", "not a budget: 'half'"),
        ("reads", "layers.4", "'reads' must be of type list"),
    ],
)
def test_a_note_that_is_wrong_is_refused_by_its_field(field, value, said, tmp_path):
    out = save(learnt(), tmp_path / "d")
    broken(out, field, value)
    with pytest.raises(ValueError, match=said) as caught:
        load(out)
    assert "d/dictionary." in str(caught.value)


def test_files_that_are_cut_short_or_do_not_fit_are_named(tmp_path):
    out = save(learnt(), tmp_path / "d")
    file = out / "dictionary.safetensors"
    good = load_file(file)
    for change, said in [
        ({"decoder": good["decoder"][:-1].clone()}, "'encoder' has 20 rows; 19 latents of features/linear ask for 19"),
        ({"encoder_bias": torch.full((LATENTS,), torch.nan)}, "'encoder_bias' must hold finite real numbers"),
        ({"encoder": good["encoder"][0].clone()}, r"'encoder' is \[6\]"),
    ]:
        save_file(good | change, file)
        with pytest.raises(ValueError, match=said):
            load(out)
    save_file({k: v for k, v in good.items() if k != "decoder"}, file)
    with pytest.raises(ValueError, match=r"has no tensor 'decoder'; it has decoder_bias, encoder"):
        load(out)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"dictionary\.safetensors cannot be read"):
        load(out)
    (out / "dictionary.json").write_text("[1")
    with pytest.raises(ValueError, match=r"dictionary\.json cannot be read"):
        load(out)


def lens(tmp_path, **more):
    out = save(learnt(), tmp_path / "d", format="saelens")
    cfg = json.loads((out / "cfg.json").read_text())
    (out / "cfg.json").write_text(json.dumps(cfg | more))
    return out


@pytest.mark.parametrize(
    "more, said",
    [
        ({"architecture": "temporal"}, "architecture='temporal' is not known here; known: 'standard', 'topk'"),
        ({"architecture": "jumprelu"}, "has no tensor 'threshold'"),
        ({"k": 0}, "k=0 must be a whole number from 1 to 20"),
        ({"k": "3"}, "k='3' must be a whole number"),
        ({"normalize_activations": "layer_norm"}, "'layer_norm' depends on each input"),
    ],
)
def test_saelens_directories_that_are_refused(more, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        load(lens(tmp_path, **more))


@pytest.mark.parametrize(
    "form, dictionary, said",
    [
        ("saelens", coder("top_k"), "has no transcoder of features/top_k"),
        ("sparsify", learnt(kept="10% per tensor"), "'10% per tensor' is not"),
        ("dictionary_learning", coder(), "holds autoencoders alone"),
        ("llama_scope", learnt("jump_relu"), "no threshold for each latent, but one for all"),
        ("gemma_scope", coder(skip=True), "has no skip connection"),
        ("circuit_tracer", learnt("relu_l1", reads=("encoder",), writes=("encoder", "pooler")), "has sites"),
        ("saelens", learnt("random"), "no place for features/random"),
    ],
)
def test_what_a_form_cannot_say_is_refused(form, dictionary, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        save(dictionary, tmp_path / "d", format=form)
    assert not list(tmp_path.iterdir())


def test_batch_top_k_without_its_threshold_is_told_so(tmp_path):
    with pytest.raises(ValueError, match="no place for features/batch_top_k, while it has no fitted threshold"):
        save(replace(learnt("batch_top_k"), own={}), tmp_path / "d", format="saelens")


def test_places_without_a_dictionary(tmp_path):
    with pytest.raises(ValueError, match="no such directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no dictionary; .*saelens: cfg.json, sae_weights.safetensors"):
        load(tmp_path)
    with pytest.raises(ValueError, match="write 'hf:owner/name'"):
        load("hf:owner")
    save(learnt(), tmp_path / "d", format="saelens")
    with pytest.raises(ValueError, match="holds no dictionary; one is known by its files: sparsify"):
        load(tmp_path / "d", format="sparsify")


def test_a_directory_of_directories_is_read_in_the_order_of_their_numbers(tmp_path):
    for i in (2, 10, 1):
        save(learnt(), tmp_path / f"layers.{i}", format="sparsify")
    assert [d.reads for d in load_all(tmp_path)] == [("layers.1",), ("layers.2",), ("layers.10",)]
    with pytest.raises(ValueError, match="holds 3 dictionaries: load_all gives them all"):
        load(tmp_path)
    with pytest.raises(ValueError, match="holds one dictionary, not 3"):
        save(load_all(tmp_path), tmp_path / "all")


def test_a_place_on_the_hub_is_fetched_alone(tmp_path, monkeypatch):
    save(learnt(), tmp_path / "layers.4", format="sparsify")
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path))
    assert load("hf:EleutherAI/sae-pythia/layers.4").reads == ("layers.4",)
    assert asked == [(("EleutherAI/sae-pythia",), {"allow_patterns": ["layers.4/*"]})]

    def fails(*_, **__):
        raise OSError("the connection broke")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    with pytest.raises(ValueError, match="hf:EleutherAI/sae-pythia cannot be fetched: the connection broke"):
        load("hf:EleutherAI/sae-pythia")


@pytest.mark.parametrize("model", ["gpt2-small", "pythia-70m", "gemma-2-2b", "meta-llama/Llama-3.1-8B"])
@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z"])
def test_names_of_places_come_back(model, hook):
    assert hook_of(path_of(f"blocks.11.{hook}", model), model) == f"blocks.11.{hook}"


def test_paths_of_places_are_those_of_real_models():
    from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, GPTNeoXConfig, LlamaConfig

    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    kinds = {"gpt2": GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9), "pythia": GPTNeoXConfig(**small)}
    kinds |= {"llama": LlamaConfig(**small), "gemma-2": Gemma2Config(**small, head_dim=4, num_key_value_heads=1)}
    for name, config in kinds.items():
        model = AutoModelForCausalLM.from_config(config)
        for hook in (
            "hook_resid_post",
            "hook_attn_out",
            "hook_mlp_out",
            "attn.hook_z",
            "mlp.hook_in",
            "hook_resid_mid",
        ):
            path = path_of(f"blocks.0.{hook}", name)
            assert (path is None) == (name == "pythia" and hook == "hook_resid_mid")
            if path:
                model.get_submodule(path.removesuffix(":in"))


def test_top_k_is_the_default_of_files_by_hand(tmp_path):
    out = save(learnt(), tmp_path / "d", format="sparsify")
    cfg = json.loads((out / "cfg.json").read_text())
    del cfg["activation"]
    (out / "cfg.json").write_text(json.dumps(cfg))
    assert load(out).sparsifier == TopK()
    (out / "cfg.json").write_text(json.dumps(cfg | {"activation": "groupmax"}))
    with pytest.raises(ValueError, match="activation='groupmax' is not known here"):
        load(out)
