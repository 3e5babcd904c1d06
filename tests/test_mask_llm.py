"""Learnt masks: the formula, the authors' file, every way a weight is stored, and that learning helps."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from tiny import batch, build

from fewer.cli import main
from fewer.core import Site, budget
from fewer.models import sites
from fewer.recipe import apply, jobs, sparsify
from fewer.train import Masks, Training, next_token
from fewer.weights.mask_llm import MaskLlm, candidates, weight_name, whole_masks, write_masks


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWER_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:8", "4:4"])
def test_candidates_are_all_masks_once(text):
    found, b = candidates(budget(text)), budget(text)
    assert len({tuple(c) for c in found.tolist()}) == len(found) == math.comb(b.group, b.keep)
    assert (found.sum(1) == b.keep).all()


def test_a_soft_mask_is_its_formula():
    torch.manual_seed(0)
    logits, noise, m = 0.01 * torch.randn(5, 6), torch.randn(5, 6), MaskLlm()
    for progress in (0.0, 0.5, 1.0):
        scale, heat = 100 + 400 * progress, 4 + (0.05 - 4) * progress
        for g, soft in enumerate(m.soft(logits, noise, budget("2:4"), progress).double()):
            worth = [
                math.exp((scale * a + n) / heat) for a, n in zip(logits[g].tolist(), noise[g].tolist(), strict=True)
            ]
            masks = [[float(i in pair) for i in range(4)] for pair in itertools.combinations(range(4), 2)]
            expected = [sum(w * s[i] for w, s in zip(worth, masks, strict=True)) / sum(worth) for i in range(4)]
            assert soft.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_prior_leans_to_its_mask():
    torch.manual_seed(0)
    keep = torch.tensor([[True, False, True, False], [False, False, True, True]])
    logits = torch.randn(2, 6) * 0.01
    leant = MaskLlm(prior=30.0).towards(logits, keep, budget("2:4"))
    assert torch.equal(MaskLlm().hard(leant, budget("2:4")), keep)
    assert torch.allclose(
        (leant - logits).sum(1), torch.zeros(2), atol=1e-5
    )  # shared by two, by one, by none: 1, 0, -1
    assert torch.allclose((leant - logits).max(), 30 * logits.std())


def by_hand(path, named):
    """The authors' form, bit by bit: first weight in the highest bit."""
    packed = {}
    for name, mask in named.items():
        bits = [int(b) for row in mask for b in row] + [0] * 7
        packed[name] = np.array(
            [int("".join(map(str, bits[i : i + 8])), 2) for i in range(0, len(bits) - 7, 8)], np.uint8
        )
    np.savez(path, **packed)


def test_the_authors_form_is_read_and_written(tmp_path):
    torch.manual_seed(0)
    mask = torch.rand(3, 4).argsort(-1).argsort(-1) < 2  # 12 bits: a byte and a half
    up = Site("model.up", torch.nn.Linear(4, 3))
    for suffix in ("", ".mask"):
        by_hand(tmp_path / f"a{suffix}.npz", {f"model.up.weight{suffix}": mask.tolist()})
        assert torch.equal(MaskLlm(file=str(tmp_path / f"a{suffix}.npz")).at(up, budget("2:4")), mask)
    write_masks(tmp_path / "ours.npz", {"model.up.weight": mask})
    with np.load(tmp_path / "ours.npz") as ours, np.load(tmp_path / "a.npz") as theirs:
        assert ours.files == theirs.files and (ours["model.up.weight"] == theirs["model.up.weight"]).all()


FAMILIES = ("llama", "gpt2", "phi3", "mixtral", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_a_weight_is_stored_is_learnt_and_nothing_is_changed(tmp_path, family):
    model, data = build(family), [batch(family)["input_ids"]]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    out = tmp_path / "masks.npz"
    learnt = Masks(model, out, how=Training(steps=2)).fit(MaskLlm(), budget("2:4"), data)
    assert learnt == MaskLlm(file=str(out))
    with np.load(out) as file:
        assert set(file.files) <= set(before) and len(file.files) > 3
    with apply(model, f"weights/mask_llm(file={out}) 2:4"):
        for site in sites(model):
            kept = (site.read() != 0).reshape(-1, 4)
            assert (kept.sum(1) <= 2).all() and kept.float().mean() > 0.49, site.name
            assert torch.equal(site.read()[site.read() != 0], read(before, site)[site.read() != 0])
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def read(state, site):
    """A site of a state dict, read by hand."""
    w = state[weight_name(site)]
    w = w if site.index is None else w[site.index]
    w = w.T if site.transposed else w
    return w if site.part is None else w[site.part]


def test_gradients_reach_the_logits_of_every_part():
    model, data = build("phi3"), batch("phi3")["input_ids"]
    soft = {s: torch.full(s.shape, 0.5, requires_grad=True) for s in sites(model)}
    weights = dict(model.named_parameters())
    masked = {name: weights[name] * m for name, m in whole_masks(soft).items()}
    next_token(lambda *a, **k: torch.func.functional_call(model, masked, a, k), data).backward()
    assert all(m.grad is not None and m.grad.abs().sum() > 0 for m in soft.values())


def test_learnt_masks_have_a_lower_loss_than_the_masks_they_began_from(tmp_path):
    model, ids = build("llama"), batch("llama", rows=8)["input_ids"]
    with apply(model, "weights/magnitude 2:4"):
        prior = {s.name: s.read() != 0 for s in sites(model)}
        before = next_token(model, ids).item()
    teacher = Masks(model, tmp_path / "m.npz", how=Training(steps=60), prior=prior)
    teacher.fit(MaskLlm(), budget("2:4"), [ids])
    with apply(model, f"weights/mask_llm(file={tmp_path / 'm.npz'}) 2:4"):
        assert next_token(model, ids).item() < before - 0.1


def test_what_was_not_learnt_is_refused_before_any_work(tmp_path):
    model = build("llama")
    file = tmp_path / "masks.npz"
    write_masks(file, {"model.layers.0.mlp.up_proj.weight": torch.tensor([True, True, False, False]).repeat(48, 8)})

    def refused(steps, says):
        with pytest.raises((ValueError, OSError), match=says), apply(model, steps):
            raise AssertionError("it was done")

    there = f"weights/mask_llm(file={file})"
    refused("weights/mask_llm 2:4", "has learnt nothing yet: `fewer train weights/mask_llm")
    refused(f"{there} 2:4 @ *.layers.0.mlp.*", r"no mask for model.layers.0.mlp.gate_proj.weight; close: .*up_proj")
    refused(f"{there} 1:4 @ *.0.mlp.up_proj", "keeps 2 to 2 of every 4; write the budget that it was learnt for")
    refused(f"{there} 50% @ *.0.mlp.up_proj", "budget '50%': .*write 2:4")
    refused(f"weights/mask_llm(file={tmp_path / 'none.npz'}) 2:4", "no masks at")
    write_masks(file, {"model.layers.0.mlp.up_proj.weight": torch.ones(4, 4, dtype=torch.bool)})
    refused(f"{there} 2:4 @ *.0.mlp.up_proj", r"has 2 bytes, \(48, 32\) needs 192")
    for name, content in (("text", b"no"), ("pickle", None)):
        bad = tmp_path / f"{name}.npz"
        bad.write_bytes(content) if content else np.savez(bad, a=np.array([{}], dtype=object))
        refused(f"weights/mask_llm(file={bad}) 2:4", "is no file of masks")
    np.savez(tmp_path / "floats.npz", a=np.ones(3))
    refused(f"weights/mask_llm(file={tmp_path / 'floats.npz'}) 2:4", "float64, not packed bits")


def test_what_is_measured_depends_on_what_the_file_holds(tmp_path):
    file, tokens = tmp_path / "m.npz", torch.arange(8).reshape(2, 4)
    keys = []
    for first in (True, False):
        write_masks(file, {"a": torch.tensor([first, not first])})
        jobs._file.cache_clear()
        keys.append(jobs.key(jobs.Job("bundled", f"weights/mask_llm(file='{file}') 2:4", "*", tokens, tokens)))
    assert keys[0] != keys[1]


def test_correctors_follow_and_the_result_is_saved(tmp_path):
    model, ids = build("llama"), batch("llama")["input_ids"]
    Masks(model, tmp_path / "m.npz", how=Training(steps=1)).fit(MaskLlm(), budget("2:4"), [ids])
    with apply(model, f"weights/mask_llm(file={tmp_path / 'm.npz'}) 2:4 + eora(rank=2)", ids) as applied:
        assert applied.changes[0].error is not None and applied.changes[0].layout == "nm"
    done = sparsify(model, f"weights/mask_llm(file={tmp_path / 'm.npz'}) 2:4", out=tmp_path / "saved")
    assert done.changes[0].kept == 0.5 and (tmp_path / "saved" / "config.json").exists()


def test_the_command_learns_says_how_to_use_it_and_goes_on(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("def f(x):\n    return x + 1\n" * 200)
    out = tmp_path / "m.npz"
    how = [
        "--where",
        "*.layers.0.self_attn.*",
        "--windows",
        "4",
        "--length",
        "16",
        "--data",
        str(tmp_path / "text.txt"),
    ]
    how += ["--steps", "2", "--prior", "weights/magnitude 2:4 @ *.layers.0.*", "-o", str(out)]
    assert main(["train", "weights/mask_llm", "2:4", *how]) == 0
    said = capsys.readouterr().err
    assert "[2/2] learning: loss" in said and "weights/mask_llm(file=" in said and "@ *.layers.0.self_attn.*" in said
    assert len((tmp_path / "m.npz.jsonl").read_text().splitlines()) == 2
    assert main(["train", "weights/mask_llm", "2:4", *how]) == 2
    assert "exists; write --force" in capsys.readouterr().err
    assert main(["train", "weights/mask_llm", "2:4", *how, "--force", "--json"]) == 0
    assert [json.loads(line)["step"] for line in capsys.readouterr().out.splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["weights/wanda", "2:4", "-o", "m.npz"], "has nothing to learn"),
        (["weights/mask_llm", "2:4", "-o", "m.bin"], "must end in .npz"),
        (["weights/mask_llm", "2:4", "-o", "no/m.npz"], "is no directory"),
        (["weights/mask_llm", "2:4", "--model", "./nowhere", "-o", "m.npz"], "no such directory"),
        (["weights/mask_llm", "50%", "-o", "m.npz", "--windows", "1"], "write 2:4"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.glob("m.*"))
