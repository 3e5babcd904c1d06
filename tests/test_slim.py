"""Channels and heads that leave for good: smaller models, on disk and in memory, that answer as the masked ones do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import batch, build
from transformers import AutoModelForCausalLM

import fewer.models.hub  # noqa: F401, so that transformers knows the format
from fewer.calibrate import Gram, observe
from fewer.core import Group, Site, budget
from fewer.models import groups, open_lazily
from fewer.recipe import apply, load, save, sparsify
from fewer.recipe.steps import step
from fewer.weights import Coupled, Part, _slim
from fewer.weights.channel_lasso import ChannelLasso, least_squares
from fewer.weights.channel_norm import ChannelNorm

STEPS = ("weights/channel_lasso 75%", "weights/cfsp(multiple=2) 50% @ mlp", "weights/channel_norm 50% per model @ mlp")


def data(family="llama", rows=4, length=16):
    return batch(family, rows=rows, length=length)["input_ids"]


def said(model, family="llama"):
    with torch.no_grad():
        return model(**batch(family)).logits


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    build("llama", layers=3).save_pretrained(path)
    return path


def built():
    return build("llama", layers=3)


@pytest.mark.parametrize("text", STEPS)
def test_masked_slimmed_in_memory_from_disk_to_disk_and_loaded_all_say_the_same(text, source, tmp_path):
    masked = built()
    with apply(masked, text, data()) as applied:
        truth = said(masked)
    assert torch.equal(said(masked), said(built())), "undone, bit for bit"
    here = built()
    sparsify(here, text, data(), out=tmp_path / "here")
    lazily = sparsify(source, text, data(), out=tmp_path / "there")
    small = sum(p.numel() for p in here.parameters())
    assert small < sum(p.numel() for p in masked.parameters())
    assert [c.kept for c in applied.changes] == [c.kept for c in lazily.changes]
    for model in (here, load(tmp_path / "here"), load(tmp_path / "there")):
        assert (said(model) - truth).abs().max() < 1e-5
        assert sum(p.numel() for p in model.parameters()) == small


def test_alike_layers_are_a_plain_smaller_model_that_needs_no_loader_of_ours(source, tmp_path):
    sparsify(source, "weights/channel_norm 50%", out=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_attention_heads"], config["num_key_value_heads"]) == (24, 2, 1)
    assert "quantization_config" not in config and "per_layer_config" not in config
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(said(plain), said(load(tmp_path / "out")))


def test_layers_of_different_widths_are_told_one_by_one_and_open_with_transformers_too(source, tmp_path):
    applied = sparsify(source, STEPS[1], data(), out=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    widths = {int(c.site.split(".")[2]): round(c.kept * 48) for c in applied.changes}
    assert len(set(widths.values())) > 1, "this test wants layers that differ"
    told = {int(i): row["intermediate_size"] for i, row in config["per_layer_config"].items()}
    assert told == widths and config["intermediate_size"] == 48
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(said(model), said(load(tmp_path / "out")))
    files = [load_file(f) for f in (tmp_path / "out").glob("model*.safetensors")]
    tensors = {k: v for file in files for k, v in file.items()}
    assert all(len(tensors[f"model.layers.{i}.mlp.up_proj.weight"]) == n for i, n in widths.items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_a_slimmed_model_generates_with_a_cache_what_it_generates_without(family):
    model = build(family)
    sparsify(model, "weights/channel_norm 50%")
    ask = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    ids = batch(family)["input_ids"]
    assert torch.equal(model.generate(ids, use_cache=True, **ask), model.generate(ids, use_cache=False, **ask))


def test_a_masked_model_is_saved_small_and_stays_as_it_is(tmp_path):
    model = built()
    with apply(model, STEPS[0], data()) as applied:
        save(applied, tmp_path / "out")
        truth = said(model)
    assert (said(load(tmp_path / "out")) - truth).abs().max() < 1e-5
    assert torch.equal(said(model), said(built()))


def test_a_slimmed_model_is_opened_block_by_block_and_pruned_or_slimmed_again(source, tmp_path):
    sparsify(source, STEPS[1], data(), out=tmp_path / "once")
    assert sum(g.units for g in groups(open_lazily(tmp_path / "once"), "mlp")) < 3 * 48
    sparsify(tmp_path / "once", "weights/channel_norm 50% @ mlp", out=tmp_path / "twice")
    sparsify(tmp_path / "once", "weights/magnitude 50% @ mlp", out=tmp_path / "sparse")
    for name in ("twice", "sparse"):
        assert said(load(tmp_path / name)).isfinite().all()  # the probe is compared on loading


def test_a_killed_run_goes_on_with_what_was_slimmed(source, tmp_path, monkeypatch):
    text = "weights/channel_lasso(refit=False) 75%"  # a refit sees the last bits of what it is resumed from
    truth = sparsify(source, text, data(), out=tmp_path / "whole")
    real, calls = _slim.act, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(_slim, "act", dies)
    with pytest.raises(KeyboardInterrupt):
        sparsify(source, text, data(), out=tmp_path / "out")
    resumed = sparsify(source, text, data(), out=tmp_path / "out")
    assert len(calls) == 4 + 4, "the first block is not done again"
    assert [c.kept for c in resumed.changes] == [c.kept for c in truth.changes]
    assert torch.equal(said(load(tmp_path / "out")), said(load(tmp_path / "whole")))


def test_slimmed_mlps_and_packed_attention_lie_in_one_model(source, tmp_path):
    text = "weights/cfsp(multiple=8) 50% @ mlp\nweights/wanda 2:4 @ attention"
    model = built()
    with apply(model, text, data()):
        truth = said(model)
    sparsify(source, text, data(), out=tmp_path / "out")
    assert (said(load(tmp_path / "out")) - truth).abs().max() < 1e-5


def test_the_change_counts_every_map_of_the_group():
    model = built()
    with apply(model, "weights/channel_norm 50%") as applied:
        for change, group in zip(applied.changes, groups(model), strict=True):
            size = sum(s.tensor.numel() for s in group.sites)
            assert change.site == group.name and change.kept == 0.5 and change.layout == "smaller"
            assert (change.bytes_before, change.bytes_after) == (4 * size, 2 * size)


def test_the_error_is_that_of_the_reader_on_its_inputs_and_the_refit_lowers_it():
    errors = {}
    for text in ("weights/channel_lasso(refit=False) 50% @ mlp", "weights/channel_lasso 50% @ mlp"):
        with apply(built(), text, data()) as applied:
            errors[text] = applied.changes[0].error
    plain, refitted = errors.values()
    assert 0 < refitted < plain


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("weights/channel_norm 2:4", "keeps whole channels and heads"),
        ("weights/channel_norm 50% of 4x4", "keeps whole channels and heads"),
        ("weights/channel_norm 64 @ mlp", "has only 48 units; write 48 or less"),
        ("weights/cfsp 50%", "knows nothing of model.layers.0.self_attn; write '@ mlp'"),
        ("weights/channel_lasso 50% per model", "gives no score"),
        ("weights/channel_norm 50% @ mlp\nweights/wanda 50% @ down", "do one, save it, and do the other"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(text, sentence):
    with pytest.raises(ValueError, match=sentence), apply(built(), text, data()):
        pass


def test_a_corrector_that_cannot_keep_whole_columns_is_refused():
    with (
        pytest.raises(ValueError, match=r"layers.0.mlp.*whole columns"),
        apply(built(), "weights/channel_norm 50% + eora(rank=2) @ mlp", data()),
    ):
        pass


def test_the_refit_is_the_least_squares_solution():
    """Against torch's own solver on the inputs themselves, in float64."""
    make = torch.Generator().manual_seed(0)
    w, x = torch.randn(5, 12, generator=make).double(), torch.randn(40, 12, generator=make).double()
    columns = torch.arange(12) % 3 > 0
    new = least_squares(w, x.mT @ x / len(x), columns, 0.0)
    truth = torch.linalg.lstsq(x[:, columns], x @ w.mT).solution.mT
    torch.testing.assert_close(new[:, columns], truth)
    assert (new[:, ~columns] == 0).all()


def test_the_lasso_finds_the_channels_that_alone_make_the_output():
    """Only channels 1, 4 and 6 reach the output; the others are loud, and read by nothing."""
    make = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, generator=make)
    x[:, [0, 2, 3]] *= 20
    w = torch.zeros(6, 8)
    w[:, [1, 4, 6]] = torch.randn(6, 3, generator=make)
    part = Part("down", w, observe((Gram,), w, x))
    keep, new = ChannelLasso().slim(Coupled(8, (), part), 3)
    assert keep.nonzero().flatten().tolist() == [1, 4, 6]
    torch.testing.assert_close(new, w, rtol=1e-3, atol=1e-3)


def test_heads_leave_with_all_their_columns():
    from torch import nn

    maps = {r: nn.Linear(6, n, bias=False) for r, n in (("q", 12), ("k", 6), ("v", 6), ("o", 12))}
    maps["o"] = nn.Linear(12, 6, bias=False)
    sites = {r: Site(r, m, r) for r, m in maps.items()}
    group = Group("attention", tuple(sites[r] for r in "qkv"), sites["o"], 3)
    none = {r: observe((), m.weight.detach(), torch.ones(1, m.in_features)) for r, m in maps.items()}
    _, stored = _slim.act(ChannelNorm(), (), group, budget("2"), none)
    gone = int((~stored.keep).nonzero())
    assert int(stored.keep.sum()) == 2
    for role, width in (("q", 4), ("k", 2), ("v", 2)):
        zero = (maps[role].weight == 0).all(1)
        assert zero.nonzero().flatten().tolist() == list(range(gone * width, (gone + 1) * width))
    assert (maps["o"].weight == 0).all(0).nonzero().flatten().tolist() == list(range(gone * 4, (gone + 1) * 4))


def test_a_step_is_printed_and_read():
    text = "weights/cfsp(multiple=64) 75% by owl @ mlp"
    assert str(step(text)) == text


def test_an_old_result_stays_until_the_new_one_is_whole(source, tmp_path):
    out = tmp_path / "out"
    sparsify(source, "weights/channel_norm 50%", out=out)
    with pytest.raises(ValueError, match="exists"):
        sparsify(source, "weights/channel_norm 75%", out=out)
    sparsify(source, "weights/channel_norm 75%", out=out, force=True)
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 36
    shutil.rmtree(out)
