"""ARMOR against brute force: it starts at what was pruned, never gets worse, and is run and stored as A, S and B."""

import itertools
import json

import pytest
import torch
from test_save import answers, data, size
from test_weights import layer
from tiny import build
from transformers import AutoModelForCausalLM

import fewer.models.hub  # noqa: F401, so that transformers knows the format
from fewer.calibrate import InputSquares, Stats, observe
from fewer.core import budget
from fewer.layout import blockwise, put_around
from fewer.models import SparseLinear, sites
from fewer.recipe import apply, load, recipe, sparsify
from fewer.weights import Pruned
from fewer.weights.armor import Armor, Factors, size_of
from fewer.weights.eora import Eora
from fewer.weights.nowag import Nowag
from fewer.weights.refit import Refit


def pruned(text="2:4", rows=16, cols=32, seed=0):
    w, x = layer(rows=rows, cols=cols, seed=seed)
    stats = observe((InputSquares,), w, x)
    return w, x, stats, Pruned(*Nowag().prune(w, budget(text), stats), budget(text))


def factors(block=8, **words):
    w, _, stats, before = pruned(**words)
    return Factors.start(w, before, stats[InputSquares].value, block)


def proxy(w, new, x):
    """The sum by its definition, in loops' order: columns first, then rows."""
    w, new = w.double(), new.double()
    cols = w.norm(dim=0)
    rows = (w / cols).norm(dim=1, keepdim=True)
    return (((w - new) / cols / rows).square() * x.double().square().mean(0)).sum().item()


def test_blocks_are_block_diagonal_matrices():
    make = torch.Generator().manual_seed(0)
    w, x = torch.randn(6, 8, generator=make), torch.randn(5, 8, generator=make)
    outer, inner = torch.randn(3, 2, 2, generator=make), torch.randn(2, 4, 4, generator=make)
    a, b = torch.block_diag(*outer), torch.block_diag(*inner)
    torch.testing.assert_close(blockwise(x, inner), x @ b.T)
    torch.testing.assert_close(put_around(w, outer, inner), a @ w @ b)


def test_it_starts_at_what_was_pruned():
    w, x, stats, before = pruned()
    start = Factors.start(w, before, stats[InputSquares].value, 8)
    assert start.loss() == pytest.approx(proxy(w, before.weight, x), rel=1e-5)
    same = start.give(before, torch.float32)
    torch.testing.assert_close(same.around[0], torch.eye(8).repeat(2, 1, 1))
    torch.testing.assert_close(same.around[1], torch.eye(8).repeat(4, 1, 1))
    torch.testing.assert_close(same.dense(), before.weight)
    assert torch.equal(same.keep, before.keep)


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:8", "50%", "30% per tensor"])
def test_no_move_makes_the_sum_larger_and_the_sum_is_true(text):
    for seed in range(3):
        w, x, stats, before = pruned(text, seed=seed)
        f = Factors.start(w, before, stats[InputSquares].value, 8)
        losses = [f.loss()]
        for _ in range(3):
            for move in (f.solve_outer, f.solve_inner, lambda f=f: f.move_values(3), lambda f=f: f.move_groups(5)):
                move()
                losses.append(f.loss())
        assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(losses)), losses
        after = f.give(before, torch.float64)
        assert losses[-1] < 0.9 * losses[0] and losses[-1] == pytest.approx(proxy(w, after.dense(), x), rel=1e-4)
        assert (after.weight[~after.keep] == 0).all()
        if budget(text).group:
            assert (after.keep.unflatten(1, (-1, budget(text).group)).sum(-1) == budget(text).keep).all()


def test_solving_one_side_is_least_squares():
    f = factors()
    f.move_values(2)
    f.solve_inner()
    made, root = torch.block_diag(*f.outer) @ f.core, f.h.sqrt()
    for j, block in enumerate(f.inner):
        cols = slice(8 * j, 8 * j + 8)
        best = torch.linalg.lstsq(made[:, cols], f.target[:, cols], driver="gelsd").solution  # of rank 7 at times
        torch.testing.assert_close(made[:, cols] @ block, made[:, cols] @ best, rtol=1e-3, atol=1e-4)
    f.solve_outer()
    made = (f.core @ torch.block_diag(*f.inner)) * root
    for i, block in enumerate(f.outer):
        rows = slice(8 * i, 8 * i + 8)
        best = torch.linalg.lstsq(made[rows].T, (f.target * root)[rows].T, driver="gelsd").solution.T
        torch.testing.assert_close(block @ made[rows], best @ made[rows], rtol=1e-3, atol=1e-4)


def test_the_group_that_gains_most_gets_its_best_places_and_values():
    """One pair of blocks, one group: all groups and all places by brute force, values by least squares."""
    make = torch.Generator().manual_seed(1)
    f = factors(block=16, rows=4, cols=8)
    f.outer = f.outer + 0.3 * torch.randn(f.outer.shape, generator=make, dtype=torch.float64)
    f.inner = f.inner + 0.3 * torch.randn(f.inner.shape, generator=make, dtype=torch.float64)
    a, b, root = f.outer[0], f.inner[0], f.h.sqrt()
    best = {}
    for row, group in itertools.product(range(4), range(2)):
        rest = f.core.clone()
        rest[row, 4 * group : 4 * group + 4] = 0
        goal = ((f.target - a @ rest @ b) * root).flatten()
        for places in itertools.combinations(range(4 * group, 4 * group + 4), 2):
            columns = torch.stack([(a[:, row, None] * b[p] * root).flatten() for p in places], 1)
            values = torch.linalg.lstsq(columns, goal[:, None]).solution[:, 0]
            best[row, places] = ((columns @ values - goal).square().sum().item(), values)
    (row, places), (least, values) = min(best.items(), key=lambda item: item[1][0])
    f.move_groups(1)
    assert f.loss() == pytest.approx(least, rel=1e-6)
    torch.testing.assert_close(f.core[row, list(places)], values, rtol=1e-5, atol=1e-7)
    assert f.keep[row, list(places)].all()


def test_it_beats_what_it_starts_from_by_far():
    for seed in range(3):
        w, x, stats, before = pruned(rows=32, cols=64, seed=seed)
        after = Armor(block=16).correct(w, before, stats)
        assert proxy(w, after.dense(), x) < 0.6 * proxy(w, before.weight, x)
        assert after.around[0].shape == (2, 16, 16) and after.around[1].shape == (4, 16, 16)


def test_blocks_hold_whole_groups():
    assert [size_of(n, 128, 4) for n in (768, 100, 4, 260)] == [128, 100, 4, 52]
    assert size_of(31, 128) == 31 and size_of(131, 128) == 1


def test_silent_inputs_and_empty_rows_break_nothing():
    w, x, _, before = pruned()
    w, x = w.clone(), x.clone()
    w[3], w[:, 5], x[:, 8:16] = 0, 0, 0
    before = Pruned(w * before.keep, before.keep, before.budget)
    after = Armor(block=8).correct(w, before, observe((InputSquares,), w, x))
    assert all(t.isfinite().all() for t in (after.weight, *after.beside)) and after.dense().isfinite().all()


def test_it_comes_right_after_pruning_and_a_refit_before_it():
    w, x, stats, before = pruned()
    stats = Stats(stats | observe(Eora.needs, w, x))
    with pytest.raises(ValueError, match="right after pruning"):
        Armor().correct(w, Eora(rank=1).correct(w, before, stats), stats)
    with pytest.raises(ValueError, match="do it before"):
        Refit().correct(w, Armor().correct(w, before, stats), stats)
    with_both = Eora(rank=2).correct(w, Armor(rounds=1, block=4).correct(w, before, stats), stats)
    plain = Armor(rounds=1, block=4).correct(w, before, stats).dense()
    torch.testing.assert_close(with_both.dense(), plain + with_both.low_rank[0] @ with_both.low_rank[1])


# --- stored ------------------------------------------------------------------------------------------------------

STEP = "weights/nowag 2:4 + armor(block=8, rounds=3)"


@pytest.mark.parametrize("name, where", [("llama", "*"), ("gpt2", "o,mlp"), ("vit", "mlp"), ("phi3", "o,down")])
def test_it_is_undone_and_what_runs_is_the_product(name, where):
    model = build(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with apply(model, f"{STEP} @ {where}", data(name)) as applied:
        for site, change in zip(sites(model, where), applied.changes, strict=True):
            stored = applied.stored[site.name]
            torch.testing.assert_close(site.read(), put_around(stored.layout.dense(), *stored.around))
            own = 4 * sum(n * size_of(n, 8) for n in site.shape)
            assert change.bytes_after == stored.layout.bytes + own and change.kept == 0.5
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name, where", [("llama", "*"), ("llama", "q,down"), ("gpt2", "o,mlp"), ("opt", "*")])
def test_saved_and_opened_it_answers_the_same(name, where, tmp_path):
    model = build(name)
    sparsify(model, f"{STEP} @ {where}", data(name), out=tmp_path / "out")
    again = load(tmp_path / "out")
    packed = {n: m for n, m in again.named_modules() if isinstance(m, SparseLinear)}
    assert set(packed) == {s.name for s in sites(model, where)}
    assert all(m.around is not None for m in packed.values())
    torch.testing.assert_close(answers(again, data(name)), answers(model, data(name)), rtol=1e-4, atol=1e-4)
    by_hub = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(answers(by_hub, data(name)), answers(model, data(name)), rtol=1e-4, atol=1e-4)
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["sites"]
    assert all({"outer", "inner"} <= site["tensors"].keys() for site in told.values())


def test_from_disk_to_disk_it_is_what_it_is_in_memory(tmp_path):
    build("llama").save_pretrained(tmp_path / "source")
    model = build("llama")
    sparsify(model, STEP, data(), out=tmp_path / "a")
    sparsify(tmp_path / "source", STEP, data(), out=tmp_path / "b")
    torch.testing.assert_close(answers(load(tmp_path / "b")), answers(load(tmp_path / "a")), rtol=1e-4, atol=1e-4)


def test_a_plain_checkpoint_holds_the_product(tmp_path):
    model = build("llama")
    sparsify(model, STEP, data(), out=tmp_path / "out", format="dense")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(answers(plain), answers(model), rtol=1e-4, atol=1e-4)
    assert all((s.read() == 0).float().mean() < 0.1 for s in sites(plain))
    sparsify(build("llama"), "weights/nowag 2:4", out=tmp_path / "core", data=data())
    assert size(tmp_path / "core") < size(tmp_path / "out")


def test_the_cost_counts_both_matrices():
    model = build("llama")
    applied = sparsify(model, f"{STEP} @ down", data())
    stored = applied.stored["model.layers.0.mlp.down_proj"]
    module = SparseLinear.from_linear(model.model.layers[0].mlp.down_proj, stored.layout, None, stored.around)
    assert module.bytes == stored.bytes
    assert module.flops(3) == 2 * 3 * (32 * 48 // 2 + 8 * (32 + 48))
    x = torch.randn(2, 5, 48)
    torch.testing.assert_close(module(x), x @ module.dense().mT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, site", [("gpt2", r"c_attn\[q\]"), ("mixtral", "experts")])
def test_a_map_that_shares_its_module_is_refused_before_any_work(name, site):
    model = build(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"{site}.*needs a module to itself"):
        sparsify(model, STEP, data(name))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert recipe(f"{STEP} @ o")
