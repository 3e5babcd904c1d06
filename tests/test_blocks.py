"""Checkpoints opened whole or lazily; what is no model is refused."""

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from fewer.layout import Bitmask
from fewer.models import (
    SparseLinear,
    blocks,
    check_finite,
    feed,
    lazy,
    materialise,
    open_lazily,
    open_model,
    release,
    sites,
    swap,
)

FAMILIES = list(tiny.FAMILIES)


def logits(model, family):
    return model(**tiny.batch(family)).logits


def test_the_bundled_model_opens_with_its_tokenizer():
    model, tokenizer = open_model("bundled", dtype="bfloat16")
    assert len(blocks(model)) == 10 and len(sites(model)) == 70 and model.dtype is torch.bfloat16
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    ids = tokenizer("def add(a, b):\n    return a +", return_tensors="pt").input_ids
    assert tokenizer.decode(model(ids).logits[0, -1].argmax()).strip() == "b"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "vit", "mixtral", "gpt_neox"])
def test_a_directory_opens_with_the_head_it_was_saved_with(family, tmp_path):
    model = tiny.build(family)
    model.save_pretrained(tmp_path)
    opened, tokenizer = open_model(tmp_path)
    assert type(opened) is type(model) and tokenizer is None
    assert torch.equal(logits(opened, family), logits(model, family))


@pytest.fixture
def saved(tmp_path):
    tiny.build("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("door", [open_model, open_lazily])
def test_what_is_no_model_is_refused_with_what_is_missing(door, saved, tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        door(tmp_path / "bare")
    with pytest.raises(ValueError, match="no such directory"):
        door(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a file"):
        door(saved / "config.json")
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(ValueError, match="read weights from safetensors"):
        door(saved)
    (saved / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"no \*\.safetensors$"):
        door(saved)


@pytest.mark.parametrize("door", [open_model, open_lazily])
def test_a_file_that_is_cut_short_is_refused(door, saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read the weights of .*llama from safetensors"):
        door(saved)


def test_a_name_that_cannot_be_reached_and_a_wrong_dtype_are_refused():
    with pytest.raises(ValueError, match="cannot open the model 'no-such-model-at-all'"):
        open_model("no-such-model-at-all")
    for dtype in ("float33", "int8"):
        with pytest.raises(ValueError, match=f"not a dtype for weights: '{dtype}'"):
            open_model("bundled", dtype=dtype)


@pytest.mark.parametrize(
    "change, words", [("drop", "lacks the weights"), ("add", "does not know"), ("cut", "wrong shape")]
)
def test_weights_that_do_not_fit_are_named(change, words, saved):
    tensors, name = load_file(saved / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    if change == "drop":
        del tensors[name]
    elif change == "add":
        name = "model.layers.7.extra"
        tensors[name] = torch.ones(2)
    else:
        tensors[name] = tensors[name][:5].clone()
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{words} .*{name}"):
        open_model(saved)


@pytest.mark.parametrize(
    "family, parameter, name",
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj"),
        ("gpt2", "transformer.h.0.attn.c_attn.weight", r"transformer.h.0.attn.c_attn\[v\]"),
        ("mixtral", "model.layers.0.mlp.experts.gate_up_proj", r"experts.gate_up_proj\[3\]\[up\]"),
        ("llama", "model.norm.weight", "model.norm.weight"),
    ],
)
def test_weights_that_are_not_finite_are_named_by_their_site(family, parameter, name):
    model = tiny.build(family)
    check_finite(model)
    model.get_parameter(parameter).view(-1)[-1] = float("inf")
    with pytest.raises(ValueError, match=f"{name} are not finite: 1 of"):
        check_finite(model)


def held(model):
    return sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_meta)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lazy_model_holds_one_block_at_a_time_and_is_the_same_model(family, tmp_path):
    tiny.build(family).save_pretrained(tmp_path, max_shard_size="30KB")
    whole, _ = open_model(tmp_path)
    model, batch = open_lazily(tmp_path), tiny.batch(family)
    names = [n for n, _ in blocks(model)]
    inside = [n for n, p in model.named_parameters() if p.is_meta]
    assert inside == [n for n, _ in whole.named_parameters() if n.startswith(names[0][:-1])]
    size = sum(p.numel() * 4 for p in blocks(whole)[0][1].parameters())
    rest, stack, heard = held(model), [b for _, b in blocks(model)], None
    for name in names:
        materialise(model, name)
        assert held(model) == rest + size
        heard = feed(model, stack, names.index(name), batch, heard)
        release(model, name)
        assert held(model) == rest
    truth = []
    blocks(whole)[-1][1].register_forward_hook(lambda m, a, o: truth.append(o[0] if isinstance(o, tuple) else o))
    whole(**batch)
    assert torch.equal(heard[0] if isinstance(heard, tuple) else heard, truth[0])


def test_the_eleventh_expert_comes_after_the_tenth(tmp_path):
    config = AutoConfig.for_model("mixtral", **tiny.GROUPED, head_dim=8, num_local_experts=11, num_experts_per_tok=2)
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    model.save_pretrained(tmp_path)
    opened = open_lazily(tmp_path)
    materialise(opened, "model.layers.1")
    for name in ("gate_up_proj", "down_proj"):
        full = f"model.layers.1.mlp.experts.{name}"
        assert torch.equal(opened.get_parameter(full), model.get_parameter(full))


def test_only_the_tensors_of_the_block_are_read(saved, monkeypatch):
    keys, read = [], lazy._Source.read
    monkeypatch.setattr(lazy._Source, "read", lambda self, key: keys.append(key) or read(self, key))
    model = open_lazily(saved)
    assert keys == ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    keys.clear()
    materialise(model, "model.layers.1")
    assert len(keys) == 9 and all(k.startswith("model.layers.1.") for k in keys)
    materialise(model, "model.layers.1")  # already there
    assert len(keys) == 9


def test_a_packed_block_stays_when_it_is_released(saved):
    model = open_lazily(saved, dtype="bfloat16")
    materialise(model, "model.layers.0")
    (site,) = sites(model, "model.layers.0.mlp.up_proj")
    w = site.read()
    assert w.dtype is torch.bfloat16
    swap(model, {site.name: SparseLinear.from_linear(site.module, Bitmask.pack(w, w > 0))})
    release(model, "model.layers.0")
    assert torch.equal(model.get_submodule(site.name).dense(), w.relu())
    assert model.get_parameter("model.layers.0.mlp.down_proj.weight").is_meta


def test_lazy_doors_refuse_what_they_cannot_do(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["model.layers.0.mlp.upwards.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no tensor 'model.layers.0.mlp.up_proj.weight'.*open_model"):
        open_lazily(saved)
    with pytest.raises(ValueError, match="not opened by open_lazily"):
        materialise(tiny.build("llama"), "model.layers.0")
