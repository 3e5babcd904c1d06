"""A sparse model on disk: smaller, the same answers, whole or not there, and made with one block in memory."""

import importlib
import json
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import batch, build
from transformers import AutoModelForCausalLM

from fewer.core import budget
from fewer.models import SparseLinear, lazy
from fewer.models.feed import call
from fewer.recipe import load, save, sparsify
from fewer.recipe.save import recipe_of
from fewer.recipe.store import Store

LINES = "weights/wanda 2:4 @ mlp\nweights/sparse_gpt 50% + eora(rank=2) @ attention"


def data(name="llama", rows=4, length=16):
    return next(iter(batch(name, rows=rows, length=length).values()))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    build("llama", layers=3).to(torch.bfloat16).save_pretrained(path)
    return path


def answers(model, question=None):
    with torch.no_grad():
        return call(model, data() if question is None else question).logits


def size(path):
    return sum(f.stat().st_size for f in path.glob("model*.safetensors"))


@pytest.mark.parametrize("name", ["llama", "llama_tied", "gpt2", "gpt_neox", "phi3", "gemma3", "mixtral", "opt"])
@pytest.mark.parametrize("form", ["packed", "dense"])
def test_a_saved_model_answers_as_it_did(name, form, tmp_path):
    model = build(name)
    applied = sparsify(model, "weights/wanda 50%", data(name))
    save(applied, tmp_path / "out", format=form)
    again = load(tmp_path / "out")
    assert any(isinstance(m, SparseLinear) for m in again.modules()) == (form == "packed")
    torch.testing.assert_close(answers(again, data(name)), answers(model, data(name)), rtol=1e-4, atol=1e-4)


def test_transformers_opens_it(tmp_path):
    model = build("llama")
    sparsify(model, "weights/sparse_gpt 2:4 + eora(rank=4)", data(), out=tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(answers(again), answers(model), rtol=1e-4, atol=1e-4)


def test_a_dense_copy_needs_nothing_of_ours(tmp_path):
    model = build("llama")
    sparsify(model, "weights/magnitude 50%", out=tmp_path / "out", format="dense")
    script = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(tmp_path / 'out')!r})"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script + "; import sys; assert 'fewer' not in sys.modules"], check=True
    )


def test_from_disk_to_disk_is_the_same_as_in_memory(source, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    in_memory = sparsify(model, LINES, data(), out=tmp_path / "one")
    on_disk = sparsify(source, LINES, data(), out=tmp_path / "two")
    told = lambda a: [(c.site, c.kept, c.bytes_before, c.bytes_after, c.layout) for c in a.changes]  # noqa: E731
    assert sorted(told(in_memory)) == sorted(told(on_disk))
    assert torch.equal(answers(load(tmp_path / "one")), answers(load(tmp_path / "two")))


def test_it_is_really_smaller(source, tmp_path):
    whole = sparsify(source, "weights/magnitude 50% @ embed,head,*", out=tmp_path / "dense", format="dense")
    half = sparsify(source, "weights/magnitude 50%", out=tmp_path / "half")
    spared = sum(c.bytes_before - c.bytes_after for c in half.changes)
    assert spared > 0.35 * sum(c.bytes_before for c in half.changes)
    room = 400 * len(half.changes)  # names and offsets of more tensors in the headers
    assert abs(size(tmp_path / "dense") - size(tmp_path / "half") - spared) < room
    assert whole.changes


def test_the_recipe_is_saved_with_it(tmp_path):
    applied = sparsify(build("llama"), LINES, data(), out=tmp_path / "out")
    assert recipe_of(tmp_path / "out") == applied.steps
    note = json.loads((tmp_path / "out" / "fewer.json").read_text())
    assert [c["site"] for c in note["changes"]] == [c.site for c in applied.changes]


def test_a_damaged_weight_is_noticed_by_the_probe(tmp_path):
    sparsify(build("llama"), "weights/magnitude 50%", out=tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.endswith("up_proj.value"))
    save_file({**tensors, name: tensors[name] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="does not answer as it did when it was saved"):
        load(tmp_path / "out")
    load(tmp_path / "out", verify=False)


def test_a_newer_format_is_refused(tmp_path):
    sparsify(build("llama"), "weights/magnitude 50%", out=tmp_path / "out")
    note = tmp_path / "out" / "fewer.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "version": 99}))
    with pytest.raises(ValueError, match="version 99 is newer than this fewer"):
        load(tmp_path / "out")


def test_an_old_result_is_not_overwritten_by_chance(source, tmp_path):
    sparsify(source, "weights/magnitude 50%", out=tmp_path / "out")
    with pytest.raises(ValueError, match="exists; write --force"):
        sparsify(source, "weights/magnitude 25%", out=tmp_path / "out")
    sparsify(source, "weights/magnitude 25%", out=tmp_path / "out", force=True)
    assert recipe_of(tmp_path / "out")[0].budget == budget("25%")


def test_a_killed_run_goes_on_where_it_was(source, tmp_path):
    sparsify(source, LINES, data(), out=tmp_path / "whole")
    torch.save(data(), tmp_path / "data.pt")
    script = textwrap.dedent("""
        import os, signal, sys, torch
        from fewer.recipe import sparsify
        def killed(what, done, total):
            if done == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        source, lines, data, out = sys.argv[1:]
        sparsify(source, lines, torch.load(data, weights_only=True), out=out, progress=killed)
    """)
    words = [str(source), LINES, str(tmp_path / "data.pt"), str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *words])
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    before = (tmp_path / "out.partial" / "log.jsonl").read_text().count("\n")
    sparsify(source, LINES, data(), out=tmp_path / "out")
    log = [json.loads(line)["site"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert before == 14 and len(log) == len(set(log)) == 21, "each site was done once, in one run or the other"
    for shard in sorted((tmp_path / "whole").glob("model-*.safetensors")):
        one, two = load_file(shard), load_file(tmp_path / "out" / shard.name)
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_resumed_run_has_the_same_divided_budgets(source, tmp_path):
    whole = sparsify(source, "weights/magnitude 30% per model", out=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(what, done, total):
        if what.startswith("block") and done == 1:
            raise Stop

    with pytest.raises(Stop):
        sparsify(source, "weights/magnitude 30% per model", out=tmp_path / "out", progress=stop)
    again = sparsify(source, "weights/magnitude 30% per model", out=tmp_path / "out")
    assert [(c.site, c.kept) for c in again.changes] == [(c.site, c.kept) for c in whole.changes]


def test_another_recipe_does_not_go_on_with_a_killed_runs_leavings(source, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "job.json").write_text('{"key": "another"}')
    (tmp_path / "out.partial" / "block-00001.json").write_text("{}")
    sparsify(source, "weights/magnitude 50%", out=tmp_path / "out")
    load(tmp_path / "out")


def test_only_one_block_is_in_memory(tmp_path, monkeypatch):
    build("llama", layers=24).save_pretrained(tmp_path / "source")
    job, real, held = importlib.import_module("fewer.recipe.sparsify"), lazy.materialise, []

    def counted(model, block):
        real(model, block)
        here = {n: p.nbytes for n, p in model.named_parameters() if not p.is_meta}
        held.append(({n.split(".")[2] for n in here if ".layers." in n}, sum(here.values())))

    monkeypatch.setattr(job, "materialise", counted)
    sparsify(tmp_path / "source", "weights/sparse_gpt 50%", data(), out=tmp_path / "out")
    model = build("llama", layers=24)
    block = sum(p.nbytes for p in model.model.layers[0].parameters())
    whole = sum(p.nbytes for p in model.parameters())
    assert len(held) >= 24 and all(len(blocks) == 1 for blocks, _ in held)
    assert {size for _, size in held} == {whole - 23 * block}, "what is outside the blocks, and one of 24 blocks"


def test_a_full_disk_in_the_middle_leaves_the_old_result(source, tmp_path, monkeypatch):
    sparsify(source, "weights/magnitude 50%", out=tmp_path / "out")
    before = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    real, calls = Store.tensors, []

    def full(self, name, tensors, metadata=None):
        calls.append(name)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        real(self, name, tensors, metadata)

    monkeypatch.setattr(Store, "tensors", full)
    with pytest.raises(OSError, match="No space left"):
        sparsify(source, "weights/magnitude 25%", out=tmp_path / "out", force=True)
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("place, says", [("nowhere/at/all", "no such directory"), (".", "no config.json")])
def test_what_is_no_model_is_refused(place, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        sparsify(place if place != "." else tmp_path, "weights/magnitude 50%", out=tmp_path / "out")


def test_a_model_on_disk_needs_a_place(source):
    with pytest.raises(ValueError, match="needs a place for the result"):
        sparsify(source, "weights/magnitude 50%")


def test_not_finite_weights_on_disk_are_named(tmp_path):
    model = build("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.inf
    model.save_pretrained(tmp_path / "source")
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.up_proj: NaN or infinite weights"):
        sparsify(tmp_path / "source", "weights/magnitude 50%", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_refused_before_the_model_is_touched(tmp_path):
    model = build("llama")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="exists; write --force"):
        sparsify(model, "weights/magnitude 50%", out=tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3"])
def test_fused_maps_are_stored_as_small_as_their_checkpoint(name, tmp_path):
    build(name).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    sparsify(tmp_path / "source", "weights/wanda 50% + eora(rank=2)", data(name), out=tmp_path / "out")
    packed = [m for m in load(tmp_path / "out").modules() if isinstance(m, SparseLinear)]
    assert packed and {t.dtype for m in packed for t in (m.value, m.left, m.right)} == {torch.bfloat16}
