"""Pruned models that run on their packed weights: the same answers, and everything back on leaving."""

import pytest
import torch
from tiny import build

import fewer
from fewer import kernels
from fewer.kernels import fastest, weigh
from fewer.layout import Bitmask, Csr, Dense, Nm, Tiles
from fewer.models import SparseLinear

STEPS = {"half": "weights/magnitude 50%", "2:4": "weights/magnitude 2:4", "tiles": "weights/magnitude 50% of 16x1"}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_fast_model_generates_what_the_masked_one_does(family, steps):
    model = build(family)
    ids = torch.randint(3, 99, (3, 7), generator=torch.Generator().manual_seed(0))
    before, modules = {k: v.clone() for k, v in model.state_dict().items()}, dict(model.named_modules())
    with torch.no_grad(), fewer.apply(model, steps) as applied:
        logits, said = model(input_ids=ids).logits, generated(model, ids)
        with fewer.fast(applied) as quick:
            assert any(isinstance(m, SparseLinear) for m in quick.modules())
            assert torch.allclose(quick(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-4 * logits.abs().max())
            assert torch.equal(generated(quick, ids), said)
        assert torch.equal(model(input_ids=ids).logits, logits)
    assert {k: id(m) for k, m in model.named_modules()} == {k: id(m) for k, m in modules.items()}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def generated(model, ids):
    return model.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))


def test_leaving_in_the_middle_restores_too():
    model = build("llama")
    modules = {k: id(m) for k, m in model.named_modules()}
    with pytest.raises(KeyError), fewer.apply(model, "weights/magnitude 50%") as applied, fewer.fast(applied):
        raise KeyError
    assert {k: id(m) for k, m in model.named_modules()} == modules


@pytest.fixture
def machine(monkeypatch):
    """A machine that reads 1 GB/s, on which a kept weight costs 1 ns in tiles, 2 in 2:4 and 4 in csr; a plain one 1.5."""
    from fewer.kernels import _costs, _dispatch

    def table(each):
        return {"float32": {"1": [each, 0.0]}, "int8": {"1": [each / 2, 0.0]}}

    layouts = {"tiles": table(1e-9), "nm": table(2e-9), "csr": table(4e-9), "dense": table(1.5e-9)}
    layouts["bitmask"] = {"float32": {"1": [0.0, 9e-9]}}
    linear = {"launch": 0.0, "linear": {"float32": {"1": [3e-9]}}, "layouts": layouts}
    made = {"device": "cpu", "machine": {"read_bytes_per_second": 1e9}, "sparse_linear": linear}
    monkeypatch.setattr(_costs, "profiles", lambda: {"made up": made})
    for cache in (_costs._profile, _dispatch._cheapest):
        cache.cache_clear()
    yield
    for cache in (_costs._profile, _dispatch._cheapest):
        cache.cache_clear()


def test_the_fastest_layout_is_the_cheapest_that_holds_the_pattern(machine):
    make = torch.Generator().manual_seed(0)
    w = torch.randn(32, 64, generator=make)
    tall = (torch.rand(2, 64, generator=make) < 0.5).repeat_interleave(16, 0)
    few = torch.rand(32, 64, generator=make) < 0.1
    half = torch.zeros(32, 64, dtype=torch.bool)
    half[:, ::2] = True
    half[0] = half[0].roll(1)  # no tiles
    most = torch.ones(32, 64, dtype=torch.bool)
    most[0, 0] = False
    for keep, kind in ((tall, Tiles), (few, Csr), (half, Nm), (most, Dense)):
        found = fastest(w, keep)
        assert type(found) is kind and torch.equal(found.dense(), w * keep)


def test_what_is_stored_is_weighed_against_a_plain_weight_of_eight_bits(machine):
    w = torch.randn(32, 64)
    tall = torch.zeros(32, 64, dtype=torch.bool)
    tall[:16, :32] = True
    tiles, bits = weigh(Tiles.pack(w, tall, 16)), weigh(Bitmask.pack(w, w > 0))
    assert tiles.bits == 8 * Tiles.pack(w, tall, 16).bytes / 2048 and tiles.floor == tiles.bits * 2048 / 8 / 1e9
    assert tiles.seconds == pytest.approx(512e-9) and tiles.plain_seconds == pytest.approx(0.75 * 2048e-9)
    assert tiles.bits > 8 and tiles.advice == "dense int8 (8 bits, 0.0 ms) is smaller"
    assert bits.advice is not None and "smaller and faster" in bits.advice and "smaller and faster" in str(bits)
    small = weigh(Tiles.pack(w.to(torch.int8), tall, 16))
    assert small.advice is None and small.bits < 8


def test_without_measured_costs_nothing_is_claimed(monkeypatch):
    from fewer.kernels import _costs

    monkeypatch.setattr(_costs, "profiles", dict)
    _costs._profile.cache_clear()
    w = torch.randn(32, 64)
    try:
        assert fastest(w, w > 0).name == "dense" and "not measured" in str(weigh(Csr.pack(w, w > 2)))
    finally:
        _costs._profile.cache_clear()


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 16, 17, 33, 128])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_every_number_of_tokens_and_odd_sizes(tokens, stored):
    make = torch.Generator().manual_seed(tokens)
    multiply = kernels.load("sparse_linear", "cpu")
    for rows, cols in ((48, 68), (50, 61)):
        w, x = torch.randn(rows, cols, generator=make).to(stored), torch.randn(tokens, cols, generator=make)
        keep = torch.rand(rows, cols, generator=make) < 0.4
        held = [Dense.pack(w, keep), Csr.pack(w, keep), Bitmask.pack(w, keep)]
        if rows % 16 == 0:
            held.append(Tiles.pack(w, keep[::16].repeat_interleave(16, 0), 16))
            rank = torch.rand(rows, cols // 4, 4, generator=make).argsort(-1)
            held += [Nm.pack(w, (rank < n).reshape(rows, cols), 4) for n in (1, 2)]
        for layout in held:
            truth = x.double() @ layout.dense().double().T
            error = (multiply(x, layout).double() - truth).abs().max()
            assert error <= 2e-6 * truth.abs().max(), (layout.name, rows, cols)
