"""Codes on a grid, in any layout: what is stored is what runs, bit for bit, and mask and zeros stay."""

import json
import math
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

import fewer
from fewer import kernels
from fewer.calibrate import Gram, Stats, inverse_root, observe
from fewer.core import Site, budget
from fewer.layout import Bitmask, Bsr, Csr, Dense, Grid, Nm, Quantised, Spqr, Tiles, smallest
from fewer.layout._grid import pack_codes, unpack_codes
from fewer.models import SparseLinear, join, sites
from fewer.select import select
from fewer.weights import Pruned, _act, gptq, spqr
from fewer.weights.dsnot import Dsnot
from fewer.weights.eora import Eora
from fewer.weights.gptq import Gptq
from fewer.weights.magnitude import Magnitude
from fewer.weights.quantise import Quantise
from fewer.weights.spqr import Spqr as SpqrMethod

PATTERNS = {
    "dense": "100%",
    "bitmask": "50%",
    "csr": "3%",
    "nm": "2:4",
    "tiles": "50% of 16x1 per tensor",
    "bsr": "25% of 16x16 per tensor",
}


def a_map(rows=32, cols=128, seed=0):
    make = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, cols, generator=make)
    x = torch.randn(256, cols, generator=make) @ (torch.eye(cols) + 0.3 * torch.randn(cols, cols, generator=make))
    return w, x


def quantised(text, bits=8, group=0, zero=False, **size):
    """A pruned map on its grid, its mask, and the layout that is chosen for it."""
    w, _ = a_map(**size)
    keep = select(w.abs(), budget(text))
    grid = Grid.around(w, keep, bits, group, zero)
    on = grid.values(grid.round(w)) * keep
    return on, keep, smallest(on, keep, budget(text), grid)


def codes_by_hand(q):
    """The codes of a Quantised, read bit by bit."""
    if q.bits == 8:
        return q.value.flatten().tolist()
    bits = [byte >> i & 1 for byte in q.value.tolist() for i in range(8)]
    return [sum(bits[t * q.bits + b] << b for b in range(q.bits)) - 2 ** (q.bits - 1) for t in range(math.prod(q.size))]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("n", [0, 1, 7, 8, 29])
def test_codes_lie_side_by_side_from_the_lowest_bit(bits, n):
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (n,), generator=torch.Generator().manual_seed(n)).to(torch.int8)
    packed = pack_codes(codes, bits)
    whole = sum((int(c) + half) << bits * i for i, c in enumerate(codes))
    assert packed.tolist() == list(whole.to_bytes(math.ceil(n * bits / 8), "little"))
    assert torch.equal(unpack_codes(packed, n, bits), codes)


@pytest.mark.parametrize("bits, group, zero", [(8, 0, False), (4, 32, False), (4, 64, True), (3, 16, True)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_gives_back_what_lay_on_the_grid(pattern, bits, group, zero, tmp_path):
    on, keep, q = quantised(PATTERNS[pattern], bits, group, zero)
    assert isinstance(q, Quantised) and q.pattern.name == pattern
    assert torch.equal(q.dense(), on) and torch.equal(
        q.keep(), q.dense() != 0 if pattern == "dense" and not zero else keep
    )
    save_file({k: v.contiguous() for k, v in q.tensors().items()}, tmp_path / "q.safetensors")
    again = Quantised.restore(load_file(tmp_path / "q.safetensors"), json.loads(json.dumps(q.numbers())))
    assert torch.equal(again.dense(), on) and torch.equal(again.keep(), q.keep())
    assert again.bytes == q.bytes == sum(t.numel() * t.element_size() for t in again.tensors().values())
    assert q.to("cpu").numbers() == q.numbers() and q.count == (keep.numel() if pattern == "dense" else keep.sum())
    there = codes_by_hand(q)
    if pattern == "bitmask":  # row-major: scale * (code - zero) by hand
        at, wide = iter(there), 128 // q.scale.shape[1]
        for i, j in keep.nonzero().tolist():
            offset = 0 if q.zero is None else q.zero[i, j // wide].item()
            assert on[i, j].item() == q.scale[i, j // wide].item() * (next(at) - offset)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_inner_layout_is_the_smallest_and_all_bytes_are_counted(pattern, bits):
    on, keep, q = quantised(PATTERNS[pattern], bits, 64)
    grid = Grid(bits, q.scale)
    sizes = {}
    for kind in (Dense, Bitmask, Csr, Nm, Tiles, Bsr):
        try:
            sizes[kind.name] = Quantised.pack(on, keep, grid, kind.pack).bytes
        except ValueError:  # this pattern it cannot hold
            continue
    assert q.bytes == min(size for name, size in sizes.items() if name != "nm" or pattern == "nm")
    kept, beside = int(keep.sum()), 2 * 32 * 2
    if pattern == "nm":
        assert q.bytes == math.ceil(kept * bits / 8) + kept * 2 // 8 + beside
    if pattern == "bitmask":
        assert q.bytes == math.ceil(kept * bits / 8) + 32 * 16 + 4 * 33 + beside


def test_half_a_step_is_the_most_that_rounding_moves_and_zero_is_always_a_point():
    w, _ = a_map()
    w = w * torch.logspace(-12, 3, 32)[:, None]
    for bits in (2, 3, 4, 8):
        for group, zero in ((0, False), (32, False), (0, True), (32, True)):
            grid = Grid.around(w, w != 0, bits, group, zero)
            step = grid.scale.float().repeat_interleave(w.shape[1] // grid.scale.shape[1], 1)
            assert ((grid.values(grid.round(w)) - w).abs() <= step * 0.50001).all(), (bits, group, zero)
            assert (grid.values(grid.round(w * 0)) == 0).all()
            assert step.isfinite().all()


def test_what_is_not_on_a_grid_is_not_stored_on_it():
    on, keep, q = quantised("50%", 4)
    with pytest.raises(ValueError, match="do not lie on the grid of 4 bits"):
        smallest(on * 1.01, keep, budget("50%"), q.grid)
    with pytest.raises(ValueError, match="float32 weights lie on no known grid"):
        Quantised.pack(on, keep)
    codes = torch.tensor([[1, 0, -3]], dtype=torch.int8)
    assert Quantised.pack(codes, codes != 0).dense().tolist() == [[1.0, 0.0, -3.0]]


def a_site(w, name="blocks.3.up"):
    linear = nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data.copy_(w)
    return Site(name, linear)


@pytest.mark.parametrize("method", [Quantise(), Quantise(4, 64, True), Gptq(4, 32), SpqrMethod()], ids=str)
@pytest.mark.parametrize("text", ["100%", "50%", "2:4"])
def test_the_stored_form_and_the_merged_map_are_the_same_numbers(method, text):
    w, x = a_map()
    site, stats = a_site(w), observe((Gram,), w, x)
    change, stored = _act.act(Magnitude(), (method,), site, budget(text), stats, torch.bfloat16)
    assert torch.equal(site.tensor.detach(), stored.layout.dense())
    assert change.bytes_after == stored.layout.bytes and change.layout == stored.layout.name
    assert (stored.layout.dense()[~select(w.abs(), budget(text))] == 0).all()
    packed = SparseLinear.from_linear(site.module, stored.layout)
    with torch.no_grad(), kernels.using("ref"):
        assert torch.equal(packed(x), site.module(x))
    assert packed.flops(3) == 2 * 3 * int(select(w.abs(), budget(text)).sum())


def test_a_low_rank_part_may_follow_and_nothing_else():
    w, x = a_map()
    stats = observe((Gram, *Dsnot.needs), w, x)
    site = a_site(w)
    _, stored = _act.act(Magnitude(), (Quantise(4), Eora(rank=4)), site, budget("2:4"), stats)
    left, right = stored.low_rank
    assert isinstance(stored.layout, Quantised)
    assert torch.equal(site.tensor.detach(), stored.layout.dense() + left @ right)
    with pytest.raises(ValueError, match=r"blocks\.3\.up: the weights do not lie on the grid"):
        _act.act(Magnitude(), (Quantise(4), Dsnot()), a_site(w), budget("50%"), stats)


@pytest.mark.parametrize(
    "method, message",
    [
        (Quantise(4, 48), "groups of 48 do not divide 128 columns; give a group that does: 128, 64, 32, 16, 8"),
        (Gptq(4, 48), "groups of 48 do not divide"),
        (Quantise(1), "codes of 1 bits cannot be stored; give 2 to 8"),
        (SpqrMethod(rows=24), "scales of 24 rows share a grid, and 32 rows do not divide"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_with_the_site(method, message):
    w, x = a_map()
    with pytest.raises(ValueError, match=f"blocks.3.up: {message}"):
        _act.act(Magnitude(), (method,), a_site(w), budget("50%"), observe((Gram,), w, x))


def in_double(w, keep, h, step, until=None):
    """Round column by column; after each, the best real numbers for all columns to come, by the normal equations."""
    v, h = w.double().clone(), h.double()
    for j in range(w.shape[1] if until is None else until):
        new = (v[:, j] / step).round().clamp(-8, 7) * step * keep[:, j]
        lost = v[:, j] - new
        v[:, j] = new
        if rest := w.shape[1] - j - 1:
            solved = torch.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j].reshape(rest, 1))
            v[:, j + 1 :] += lost[:, None] * solved.T
    return v


@pytest.mark.parametrize("cols", [5, 24, 40])
@pytest.mark.parametrize("text", ["100%", "50%"])
def test_gptq_is_the_best_that_the_columns_to_come_can_do_at_each_step(text, cols):
    w, x = a_map(8, cols)
    keep, h = select(w.abs(), budget(text)), observe((Gram,), w, x)[Gram].value
    grid = Grid(4, torch.full((8, 1), 0.5))
    ours = gptq.in_order(w * keep, keep, inverse_root(h, 0.0).float(), cols, lambda v, at: grid)
    torch.testing.assert_close(ours.double(), in_double(w * keep, keep, h, 0.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", [3, 8, 24])
def test_a_group_is_laid_out_when_all_before_it_has_been_made_up_for(group):
    w, x = a_map(8, 48)
    h, keep = observe((Gram,), w, x)[Gram].value, torch.ones_like(w, dtype=torch.bool)
    seen = []

    def fit(v, at):
        seen.append((at.start, v.clone()))
        return Grid(4, torch.full((8, 1), 0.5))

    gptq.in_order(w, keep, inverse_root(h, 0.0).float(), group, fit)
    assert [start for start, _ in seen] == list(range(0, 48, group))
    for start, v in seen:
        moved = in_double(w, keep, h, 0.5, until=start)
        torch.testing.assert_close(v.double(), moved[:, start : start + group], rtol=1e-4, atol=1e-4)


def test_spqr_takes_the_bits_of_the_papers_formula():
    w, x = a_map(64, 256)
    site = a_site(w)
    for bits, share in ((3, 0.01), (4, 0.005), (3, 0.0)):
        method = SpqrMethod(bits=bits, outliers=share)
        _, stored = _act.act(Magnitude(), (method,), site, budget("100%"), observe((Gram,), w, x))
        apart = int(share * w.numel())
        bits_each = bits + (3 + 3) / 16 + 64 / (16 * 16) + 32 * apart / w.numel() + 32 * 65 / w.numel()
        assert stored.bytes * 8 == pytest.approx(bits_each * w.numel(), abs=1e-6)
        assert isinstance(stored.layout, Spqr) and stored.layout.outlier.count == apart
        site.write(w)


def test_spqr_keeps_its_outliers_exactly_and_tells_them_from_large_weights():
    """An outlier is what a group of small weights cannot afford: of two spikes the one whose input is silent is not."""
    w, x = a_map(16, 32)
    w, x = (w * 0.1).bfloat16().float(), torch.eye(32).repeat(8, 1)
    w[3, 5], w[7, 20] = 40.0, 40.0
    x[:, 20] *= 1e-3
    stats, whole = observe((Gram,), w, x), Pruned(w, torch.ones_like(w, dtype=torch.bool), budget("100%"))
    after = SpqrMethod(outliers=1 / 512).correct(w, whole, stats)
    assert after.grid.apart.nonzero().tolist() == [[3, 5]] and after.weight[3, 5] == 40.0
    none = SpqrMethod(outliers=0.0).correct(w, whole, stats)
    assert stats[Gram].energy(after.weight - w) < 0.5 * stats[Gram].energy(none.weight - w)


def test_sensitivity_is_what_a_group_gains_by_being_rounded_without_one_of_it():
    w, _ = a_map(4, 32)
    root = torch.rand(32, generator=torch.Generator().manual_seed(3)) + 0.5

    def cost(group, price, without=None):
        inside = [v for i, v in enumerate(group) if i != without]
        low, high = min(0.0, *inside), max(0.0, *inside)
        step = (high - low) / 7
        near = [low + min(max(round((v - low) / step), 0), 7) * step for v in group]
        return sum(
            (v - q) ** 2 / p**2 for i, (v, q, p) in enumerate(zip(group, near, price, strict=True)) if i != without
        )

    found = spqr.sensitivity(w, torch.ones_like(w, dtype=torch.bool), root, bits=3, group=16)
    for r in range(4):
        for start in (0, 16):
            group, price = w[r, start : start + 16].tolist(), root[start : start + 16].tolist()
            expected = [cost(group, price) - cost(group, price, i) for i in range(16)]
            torch.testing.assert_close(found[r, start : start + 16], torch.tensor(expected), rtol=1e-3, atol=1e-4)


def test_spqr_errs_less_than_rounding_and_gptq_at_no_more_bits():
    for seed in range(3):
        w, x = a_map(64, 256, seed)
        w = w * torch.where(torch.rand_like(w) < 0.004, 6, 1)  # heavy tails, as trained weights have
        stats, errors, bits = observe((Gram,), w, x), {}, {}
        for name, method in {
            "spqr": SpqrMethod(),  # 3.95 bits
            "gptq": Gptq(4, 0),  # 4.125
            "nearest": Quantise(4, 128),  # 4.125
        }.items():
            change, stored = _act.act(Magnitude(), (method,), a_site(w), budget("100%"), stats)
            errors[name], bits[name] = change.error, stored.bytes
        assert bits["spqr"] <= min(bits["gptq"], bits["nearest"])
        assert errors["spqr"] < errors["gptq"] < errors["nearest"]


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("form", [(8, 0, False), (4, 64, False), (8, 0, True)], ids=str)
def test_every_backend_multiplies_by_what_is_stored(form, pattern, batch):
    on, _, q = quantised(PATTERNS[pattern], *form)
    x, bias = torch.randn(batch, 128, generator=torch.Generator().manual_seed(1)), torch.arange(32.0)
    truth = x.double() @ on.double().T + bias
    for backend in ("ref", "dense", "cpu"):
        torch.testing.assert_close(
            kernels.load("sparse_linear", backend)(x, q, bias).double(), truth, rtol=1e-5, atol=1e-4
        )
    torch.testing.assert_close(kernels.sparse_linear(x, q, bias).double(), truth, rtol=1e-5, atol=1e-4)
    assert kernels.sparse_linear(x.bfloat16(), q).dtype == torch.bfloat16


def test_spqr_multiplies_by_what_is_stored():
    w, x = a_map()
    site = a_site(w)
    _, stored = _act.act(Magnitude(), (SpqrMethod(outliers=0.02),), site, budget("100%"), observe((Gram,), w, x))
    truth = x.double() @ site.tensor.detach().double().T
    for backend in ("ref", "dense", "cpu"):
        torch.testing.assert_close(
            kernels.load("sparse_linear", backend)(x, stored.layout).double(), truth, rtol=1e-5, atol=1e-3
        )
        torch.testing.assert_close(
            kernels.load("sparse_linear", backend)(x[:1], stored.layout).double(), truth[:1], rtol=1e-5, atol=1e-3
        )


STEPS = {
    "llama": "weights/magnitude 2:4 + quantise(bits=4, group=16)",
    "gpt2": "weights/wanda 50% + quantise",
    "phi3": "weights/magnitude 50% + gptq(bits=4, group=16)",
    "gpt_neox": "weights/magnitude 2:4 + quantise(bits=4, group=16)",
    "gemma2": "weights/sparse_gpt 2:4 + gptq(bits=4, group=16)",
    "qwen3": "weights/magnitude 100% + spqr",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("family", STEPS)
def test_a_quantised_model_comes_back_and_says_the_same(family, dtype, tmp_path):
    model, data = tiny.build(family).to(dtype), tiny.batch(family, rows=8)["input_ids"]
    applied = fewer.sparsify(model, STEPS[family], data, out=tmp_path / "small")
    told = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]["sites"]
    assert {s["layout"] for s in told.values()} == {"spqr" if "spqr" in STEPS[family] else "quantised"}
    assert {c.site.partition("[")[0] for c in applied.changes} == set(told)
    loaded = fewer.load(tmp_path / "small")
    near = {"rtol": 0, "atol": 0} if dtype == torch.float32 else {"rtol": 1e-3, "atol": 1e-6}  # as the model rounds
    for site in sites(loaded, "*"):
        merged = next(s for s in sites(model, site.name) if s.name == site.name)
        torch.testing.assert_close(site.read().float(), merged.read().float(), **near, msg=site.name)
    with torch.no_grad():
        close = 1e-3 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(loaded(data).logits.float(), model(data).logits.float(), rtol=close, atol=close)


def test_parts_with_grids_of_their_own_join_without_rounding_again():
    model = tiny.build("gpt_neox")
    parts = [s for s in sites(model, "q,k,v") if s.layer == 0]
    stored = [_act.act(Magnitude(), (Quantise(4, 16),), s, budget("50%"), Stats()) for s in parts]
    layout, _ = join([(s, kept.layout, None) for s, (_, kept) in zip(parts, stored, strict=True)])
    assert isinstance(layout, Quantised) and torch.equal(layout.dense(), parts[0].tensor.detach())
    assert layout.bytes <= sum(kept.bytes for _, kept in stored)
    alone, _ = join([(parts[0], stored[0][1].layout, None)])  # the other rows have no grid
    assert not isinstance(alone, Quantised) and torch.equal(alone.dense(), parts[0].tensor.detach())


def test_a_packed_model_is_not_quantised_again():
    model = tiny.build("llama")
    (site, *_) = sites(model, "down")
    w = site.read().contiguous()
    grid = Grid.around(w, w != 0, 8)
    packed = SparseLinear.from_linear(site.module, Quantised.pack(grid.values(grid.round(w)), w != 0, grid))
    model.model.layers[0].mlp.down_proj = packed
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.down_proj is packed already"):
        fewer.sparsify(model, "weights/magnitude 50% + quantise @ down")
    assert replace(packed.layout, bits=8).name == "quantised"
    assert torch.equal(F.linear(torch.eye(48), packed.dense()).T, packed.dense())
