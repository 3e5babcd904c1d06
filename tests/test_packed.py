"""Packed modules compute what they stand for, go back, join, and come back from disk bit for bit."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fewer.layout import Bitmask, Csr, Dense, Nm
from fewer.models import SparseLinear, join, open_model, restore, sites, swap
from fewer.models.hub import describe


def named(model, where):
    return [s.name for s in sites(model, where)]


def logits(model, family):
    return model(**tiny.batch(family)).logits


KINDS = {"bitmask": Bitmask, "nm": Nm, "csr": Csr, "dense": Dense}


ROUND_TRIPS = ["llama bitmask", "llama nm", "llama_tied csr", "gpt2 bitmask", "gpt2 nm", "mixtral bitmask", "vit dense"]


def pack(site, kind, rank=0, seed=0):
    torch.manual_seed(seed)
    w = site.read().contiguous()
    keep = torch.rand_like(w).unflatten(1, (-1, 4)).argsort(-1).argsort(-1).flatten(1) < 2
    low = (torch.randn(len(w), rank), torch.randn(rank, w.shape[1])) if rank else None
    return SparseLinear.from_linear(site.module, KINDS[kind].pack(w, keep), low), w * keep


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family, where", [("llama", "down"), ("gpt2", "*.mlp.c_proj")])
def test_a_packed_linear_computes_what_it_stands_for_and_goes_back(kind, family, where):
    model, truth = tiny.build(family), tiny.build(family)
    before = logits(model, family)
    modules = {}
    for site, other in zip(sites(model, where), sites(truth, where), strict=True):
        modules[site.name], pruned = pack(site, kind)
        other.write(pruned)
        assert torch.equal(modules[site.name].weight, pruned)
    old = swap(model, modules)
    torch.testing.assert_close(logits(model, family), logits(truth, family))
    assert named(model, where) == named(truth, where)
    assert all(isinstance(s.module, SparseLinear) for s in sites(model, where))
    restore(model, old)
    assert torch.equal(logits(model, family), before)


def test_the_low_rank_part_is_added_and_counted():
    (site, *_) = sites(tiny.build("llama"), "down")
    packed, pruned = pack(site, "bitmask", rank=3)
    left, right = packed.low_rank
    torch.testing.assert_close(packed.dense(), pruned + left @ right)
    x = torch.randn(2, 5, 48)
    torch.testing.assert_close(packed(x), x @ packed.dense().mT)
    assert packed.bytes == packed.layout.bytes + 4 * 3 * (32 + 48)


def test_a_moved_or_loaded_module_has_the_layout_of_its_new_tensors():
    (site, other, *_) = sites(tiny.build("llama"), "down")
    a, pruned = pack(site, "bitmask")
    b, _ = pack(other, "bitmask")
    assert b.layout is b.layout
    b.load_state_dict(a.state_dict())
    assert torch.equal(b.dense(), pruned)
    assert torch.equal(a.to(torch.bfloat16).dense(), pruned.bfloat16())


def test_a_layout_of_the_wrong_shape_and_an_unknown_place_are_refused():
    model = tiny.build("llama")
    (site, *_) = sites(model, "down")
    packed, _ = pack(site, "bitmask")
    with pytest.raises(ValueError, match=r"\(32, 48\) and the module maps \(48, 32\)"):
        SparseLinear.from_linear(model.model.layers[0].mlp.up_proj, packed.layout)
    with pytest.raises(ValueError, match=r"no module 'model.nowhere'"):
        swap(model, {site.name: packed, "model.nowhere": packed})
    assert model.get_submodule(site.name) is site.module


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("kind", ["bitmask", "nm"])
def test_parts_join_to_the_fused_module(family, kind):
    model = tiny.build(family)
    parts = [s for s in sites(model, "q,k,v") if s.layer == 0]
    dense = tiny.build(family)
    stored = []
    for i, site in enumerate(parts):
        packed, pruned = packed_part(site, kind, i)
        stored.append((site, packed, None if i == 1 else (torch.ones(site.shape[0], 2), torch.ones(2, 32))))
        sites(dense, site.name)[0].write(pruned + (0 if i == 1 else 2))
    layout, low = join(stored)
    assert layout.name == kind and low[1].shape == (4, 32)
    name = parts[0].name.partition("[")[0]
    swap(model, {name: SparseLinear.from_linear(parts[0].module, layout, low)})
    torch.testing.assert_close(logits(model, family), logits(dense, family))


def save_packed(model, path):
    """What transformers itself writes for a model with packed modules."""
    model.config.quantization_config = describe(model)
    model.save_pretrained(path)
    del model.config.quantization_config


def packed_part(site, kind, seed):
    torch.manual_seed(seed)
    w = site.read().contiguous()
    keep = torch.rand_like(w).unflatten(1, (-1, 4)).argsort(-1).argsort(-1).flatten(1) < 2
    return KINDS[kind].pack(w, keep), w * keep


@pytest.mark.parametrize(
    "family, kind",
    [tuple(pair.split()) for pair in ROUND_TRIPS],
)
def test_packed_models_come_back_bit_for_bit(family, kind, tmp_path):
    model = tiny.build(family)
    where = "o" if family == "mixtral" else "o,down"
    swap(model, {s.name: pack(s, kind, rank=2 * (s.role == "o"))[0] for s in sites(model, where)})
    save_packed(model, tmp_path / "a")
    told = json.loads((tmp_path / "a" / "config.json").read_text())["quantization_config"]
    assert told == json.loads(json.dumps(describe(model))) and told["quant_method"] == "fewer"
    assert not hasattr(model.config, "quantization_config")
    opened, _ = open_model(tmp_path / "a")
    assert torch.equal(logits(opened, family), logits(model, family))
    opened.save_pretrained(tmp_path / "b")
    again, _ = open_model(tmp_path / "b")
    assert torch.equal(logits(again, family), logits(model, family))


def test_stored_tensors_keep_their_dtypes_and_names(tmp_path):
    model = tiny.build("llama").to(torch.bfloat16)
    (site, *_) = sites(model, "down")
    swap(model, {site.name: pack(site, "bitmask", rank=2)[0]})
    save_packed(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    mine = {n.rpartition(".")[2]: t.dtype for n, t in tensors.items() if n.startswith(site.name)}
    real = {"value": torch.bfloat16, "mask": torch.uint8, "start": torch.int32}
    assert mine == real | {"left": torch.float32, "right": torch.float32}
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert opened.get_submodule(site.name).value.dtype is torch.bfloat16
    torch.testing.assert_close(logits(opened, "llama"), logits(model.float(), "llama"), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda told: told.update(version=99), "format 99"),
        (lambda told: told["sites"].update({"model.nowhere": {}}), "names 'model.nowhere'"),
        (lambda told: next(iter(told["sites"].values())).update(layout="zip"), "no layout 'zip'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(change, words, tmp_path):
    model = tiny.build("llama")
    swap(model, {s.name: pack(s, "bitmask")[0] for s in sites(model, "down")})
    save_packed(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config["quantization_config"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((ValueError, LookupError), match=words):
        open_model(tmp_path)


def test_only_survivors_and_the_low_rank_part_are_multiplied():
    (site, *_) = sites(tiny.build("llama"), "down")
    module, w = pack(site, "bitmask", rank=2)
    assert module.flops(3) == 2 * 3 * ((w != 0).sum().item() + 2 * sum(site.shape))
