"""Pruners and correctors that move weights, against closed forms: least squares, singular values, means, brute force."""

import itertools

import pytest
import torch
from test_save import answers, data
from test_weights import layer, output_error
from tiny import build
from torch import nn

from fewer.calibrate import Gram, InputMean, observe
from fewer.core import Site, budget
from fewer.models import SparseLinear, sites
from fewer.recipe import apply, load, sparsify
from fewer.select import select
from fewer.weights import Pruned, _act
from fewer.weights.alps import Alps
from fewer.weights.bias_correction import BiasCorrection
from fewer.weights.eora import Eora
from fewer.weights.low_rank import LowRank
from fewer.weights.magnitude import Magnitude
from fewer.weights.nowag import Nowag
from fewer.weights.refit import Refit
from fewer.weights.sparse_gpt import SparseGpt


def pruned(w, text):
    keep = select(w.abs(), budget(text))
    return Pruned(w * keep, keep, budget(text))


def best_for(w, keep, x):
    """Each row's survivors by least squares on the raw inputs."""
    w, x = w.double(), x.double()
    out = torch.zeros_like(w)
    for row, stays, dense in zip(out, keep, w, strict=True):
        row[stays] = torch.linalg.lstsq(x[:, stays], (x @ dense)[:, None]).solution[:, 0]
    return out


# --- refit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["50%", "2:4", "30% per tensor", "25% per column", "25% of 2x2"])
def test_refit_is_least_squares_on_the_raw_inputs(text):
    w, x = layer()
    before = pruned(w, text)
    after = Refit(damp=0.0, tolerance=1e-9).correct(w, before, observe(Refit.needs, w, x))
    best = best_for(w, before.keep, x)
    assert torch.equal(after.keep, before.keep) and (after.weight[~after.keep] == 0).all()
    assert output_error(w, after.weight, x) == pytest.approx(output_error(w, best, x), rel=1e-5)
    torch.testing.assert_close(after.weight, best.float(), rtol=1e-2, atol=1e-2)


def test_refit_is_never_worse_than_what_it_was_given():
    for seed in range(3):
        w, x = layer(seed=seed)
        stats = observe((Gram,), w, x)
        out, keep = SparseGpt().prune(w, budget("50%"), stats)
        after = Refit(damp=0.0, rounds=2).correct(w, Pruned(out, keep, budget("50%")), stats)
        assert output_error(w, after.weight, x) < output_error(w, out, x)


def test_damping_pulls_to_the_dense_weights():
    w, x = layer()
    before, stats = pruned(w, "50%"), observe((Gram,), w, x)
    far = Refit(damp=1e6).correct(w, before, stats).weight
    torch.testing.assert_close(far, before.weight, rtol=1e-3, atol=1e-3)


def test_a_row_that_lost_nothing_stays_bit_for_bit():
    w, x = layer()
    before = pruned(w, "50% per tensor")
    keep = before.keep.clone()
    keep[1] = True
    after = Refit().correct(w, Pruned(w * keep, keep, before.budget), observe((Gram,), w, x))
    assert torch.equal(after.weight[1], w[1])


def test_refit_leaves_to_a_low_rank_part_what_that_part_does():
    w, x = layer()
    stats = observe((Gram,), w, x)
    mended = LowRank(rank=2).correct(w, pruned(w, "50%"), stats)
    after = Refit(damp=0.0, tolerance=1e-9).correct(w, mended, stats)
    rest = w - mended.low_rank[0] @ mended.low_rank[1]
    best = best_for(rest, mended.keep, x)
    assert output_error(rest, after.weight, x) == pytest.approx(output_error(rest, best, x), rel=1e-5)
    assert output_error(w, after.dense(), x) < output_error(w, mended.dense(), x)


# --- ALPS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["50%", "2:4", "30% per tensor", "1:4"])
def test_alps_is_nearer_to_the_dense_outputs_than_sparse_gpt(text):
    for seed in range(3):
        w, x = layer(rows=12, cols=48, seed=seed)
        stats = observe((Gram,), w, x)
        ours, theirs = (m.prune(w, budget(text), stats)[0] for m in (Alps(), SparseGpt()))
        assert output_error(w, ours, x) <= output_error(w, theirs, x)


def test_alps_lies_between_the_best_and_the_middle_of_all_masks():
    """Every way to keep 4 of 10, each with its best values."""
    for seed in range(6):
        w, x = layer(rows=1, cols=10, seed=seed)
        masks = torch.zeros(210, 10).scatter_(1, torch.tensor(list(itertools.combinations(range(10), 4))), 1).bool()
        errors = sorted(output_error(w.double(), best_for(w, keep[None], x), x) for keep in masks)
        found = output_error(w, Alps(damp=1e-6).prune(w, budget("4"), observe((Gram,), w, x))[0], x)
        assert errors[0] * (1 - 1e-4) <= found < errors[len(errors) // 2]


def test_alps_ends_on_the_best_values_for_its_places():
    w, x = layer()
    out, keep = Alps(damp=1e-8).prune(w, budget("50%"), observe((Gram,), w, x))
    assert output_error(w, out, x) == pytest.approx(output_error(w, best_for(w, keep, x), x), rel=1e-4)


def test_alps_on_silent_inputs_is_finite():
    w, x = layer()
    out, keep = Alps().prune(w, budget("50%"), observe((Gram,), w, x * 0))
    assert out.isfinite().all() and (keep.sum(1) == 12).all()


# --- low rank, NoWag ---------------------------------------------------------------------------------------------


def test_low_rank_is_the_nearest_matrix_of_its_rank_and_eora_has_the_nearer_outputs():
    w, x = layer(rows=9, cols=12)
    stats, before = observe((Gram,), w, x), pruned(w, "25%")
    lost = (w - before.weight).double()
    for rank in (1, 3, 6):
        plain, eora = (m(rank).correct(w, before, stats) for m in (LowRank, Eora))
        left = torch.linalg.svdvals(lost)[rank:].square().sum().item()
        assert (w - plain.dense()).double().square().sum().item() == pytest.approx(left, rel=1e-4)
        assert plain.low_rank[0].shape == (9, rank) and torch.equal(plain.weight, before.weight)
        assert output_error(w, eora.dense(), x) < output_error(w, plain.dense(), x)
    twice = LowRank(2).correct(w, LowRank(2).correct(w, before, stats), stats)
    torch.testing.assert_close(twice.dense(), LowRank(4).correct(w, before, stats).dense(), rtol=1e-3, atol=1e-3)


def test_nowag_does_not_see_how_large_a_row_or_column_is():
    w, x = layer()
    keep = Nowag().prune(w, budget("50%"), observe(Nowag.needs, w, x))[1]
    louder = w * torch.arange(1, 25)
    assert torch.equal(keep, Nowag().prune(louder, budget("50%"), observe(Nowag.needs, louder, x))[1])
    tall = w * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0])[:, None] * 3
    assert torch.equal(keep, Nowag().prune(tall, budget("50%"), observe(Nowag.needs, tall, x))[1])


# --- bias correction ---------------------------------------------------------------------------------------------


def test_each_output_has_its_old_mean():
    w, x = layer(mean=2.0)
    after = BiasCorrection().correct(w, pruned(w, "50%"), observe((InputMean,), w, x))
    torch.testing.assert_close((x @ after.weight.T + after.bias).mean(0), (x @ w.T).mean(0), rtol=1e-3, atol=1e-3)
    again = BiasCorrection().correct(w, after, observe((InputMean,), w, x))
    assert torch.equal(again.bias, after.bias)  # it is not added twice
    whole = Pruned(w, torch.ones_like(w).bool(), budget("100%"))
    assert BiasCorrection().correct(w, whole, observe((InputMean,), w, x)).bias is None


def test_the_error_told_is_that_of_the_outputs_with_the_bias():
    w, x = layer(mean=2.0)
    linear = nn.Linear(24, 6, bias=False)
    linear.weight.data.copy_(w)
    stats = observe((Gram, InputMean), w, x)
    change, stored = _act.act(Magnitude(), (BiasCorrection(),), Site("up", linear), budget("50%"), stats)
    with torch.no_grad():
        off = (linear(x) - x @ w.T).double().square().sum() / (x @ w.T).double().square().sum()
    assert change.error == pytest.approx(off.item(), rel=1e-3)
    assert change.bytes_after == stored.bytes == stored.layout.bytes + 6 * 4


STEP = "weights/wanda 50% + bias_correction"


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "phi3", "opt", "vit"])
def test_a_bias_is_given_or_moved_and_undone(name):
    model = build(name)
    before, ways = state(model), {s.name: s.bias is None for s in sites(model)}
    with apply(model, STEP, data(name)) as applied:
        for site in sites(model):
            old = before.get(f"{site.name.partition('[')[0]}.bias")
            part = slice(None) if site.part is None else site.part
            moved = site.bias[part] - (0 if old is None else old[part])
            assert moved.abs().sum() > 0, site
        given = {s.module for s in sites(model) if ways[s.name]}
        assert sum(s.bias is not None for s in applied.stored.values()) == len(given)
    after = state(model)
    assert before.keys() == after.keys() and all(torch.equal(v, after[k]) for k, v in before.items())


def test_experts_take_a_bias_only_if_they_have_one():
    with pytest.raises(ValueError, match="bias_correction needs a bias, which its module cannot take"):
        sparsify(build("mixtral"), STEP, data("mixtral"))
    model = build("gpt_oss")
    before = state(model)
    sparsify(model, f"{STEP} @ experts", data("gpt_oss"))
    changed = {k.rpartition(".")[2] for k, v in state(model).items() if not torch.equal(v, before[k])}
    assert changed == {"gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_biases_are_saved_and_opened(name, tmp_path):
    model = build(name)
    sparsify(model, STEP, data(name), out=tmp_path / "out")
    again = load(tmp_path / "out")
    assert all(m.bias is not None for m in again.modules() if isinstance(m, SparseLinear))
    torch.testing.assert_close(answers(again, data(name)), answers(model, data(name)), rtol=1e-4, atol=1e-4)


def test_biases_go_from_disk_to_disk(tmp_path):
    build("llama").save_pretrained(tmp_path / "source")
    model = build("llama")
    sparsify(model, STEP, data())
    sparsify(tmp_path / "source", STEP, data(), out=tmp_path / "out")
    torch.testing.assert_close(answers(load(tmp_path / "out")), answers(model), rtol=1e-3, atol=1e-3)


def test_a_plain_checkpoint_without_biases_is_refused_before_any_work(tmp_path):
    model = build("llama")
    before = state(model)
    with pytest.raises(ValueError, match="q_proj has no bias, and 'dense' has no place"):
        sparsify(model, STEP, data(), out=tmp_path / "out", format="dense")
    assert all(torch.equal(v, before[k]) for k, v in state(model).items()) and not (tmp_path / "out").exists()
    model = build("gpt2")  # which has biases
    sparsify(model, STEP, data("gpt2"), out=tmp_path / "out", format="dense")
    again = load(tmp_path / "out")
    torch.testing.assert_close(answers(again, data("gpt2")), answers(model, data("gpt2")), rtol=1e-4, atol=1e-4)
