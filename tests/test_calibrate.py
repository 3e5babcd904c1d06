"""Statistics are what float64 says they are, however the stream was cut, and hooks leave no trace."""

import doctest
import gc
import importlib

import pytest
import torch
from torch import nn

import fewer.calibrate
from fewer.calibrate import (
    GradSquares,
    Gram,
    InputMean,
    InputSquares,
    InputVariance,
    OutNorms,
    Quantiles,
    Stats,
    observe,
    stats,
    watching,
)
from fewer.core import Site

ROOMS = ("crew", "gradients", "stats", "watch")
OF_INPUT = (InputSquares, InputMean, InputVariance, Gram)


def truth(x):
    x = x.double()
    return {
        InputSquares: x.square().mean(0),
        InputMean: x.mean(0),
        InputVariance: x.var(0, correction=0),
        Gram: x.T @ x / len(x),
    }


@pytest.mark.parametrize("cut", [[100], [1, 99], [7, 0, 13, 80], [1] * 100])
def test_a_stream_counts_the_same_however_it_is_cut(cut):
    x = torch.randn(100, 5) * torch.tensor([1e-3, 1.0, 10.0, 1e3, 1.0]) + torch.tensor([0.0, 3.0, -10.0, 1.0, 1e3])
    seen = Stats({kind: kind.of(torch.ones(2, 5)) for kind in OF_INPUT})
    for part in x.split(cut):
        for stat in seen.values():
            stats.see(stat, part)
    for kind, expected in truth(x).items():
        torch.testing.assert_close(seen[kind].value.double(), expected, rtol=2e-5, atol=1e-4)
        assert seen[kind].tokens == 100


def test_half_precision_is_widened_before_it_is_counted(monkeypatch):
    monkeypatch.setattr(stats, "CHUNK", 64)
    x = (torch.randn(3, 100, 4) * 500).half()  # squares do not fit float16
    seen = observe(OF_INPUT, torch.ones(2, 4).half(), x)
    for kind, expected in truth(x.reshape(-1, 4)).items():
        assert seen[kind].value.dtype == torch.float32
        torch.testing.assert_close(seen[kind].value.double(), expected, rtol=1e-4, atol=1e-2)


def test_energy_is_the_mean_squared_length_of_the_output():
    x, d = torch.randn(50, 6), torch.randn(3, 6)
    assert observe((Gram,), d, x)[Gram].energy(d) == pytest.approx((x @ d.T).square().sum(1).mean().item(), rel=1e-5)


def test_quantiles_are_exact_when_small():
    x = torch.randn(30, 7)
    seen = observe((Quantiles,), torch.ones(1, 7), x)[Quantiles]
    for q in (0.0, 0.1, 0.5, 0.77, 1.0):
        assert seen.at(q) == pytest.approx(x.abs().flatten().double().quantile(q).item(), rel=1e-5)


def test_quantiles_of_a_long_stream_are_close_and_repeatable():
    parts = [torch.randn(5000, 8) * (1 + i) for i in range(6)]  # the scale drifts: early and late must count alike
    once, again = (Quantiles.of(torch.ones(1, 8)) for _ in range(2))
    for part in parts:
        once.see(part)
        again.see(part)
    assert len(once.value) == Quantiles.size and torch.equal(once.value, again.value)
    whole = torch.cat(parts).abs().flatten().sort().values
    for q in (0.1, 0.5, 0.9):
        reached = torch.searchsorted(whole, once.at(q)).item() / len(whole)
        assert abs(reached - q) < 0.01  # the standard error is 0.002


def test_what_was_not_needed_cannot_be_asked():
    with pytest.raises(KeyError, match="Gram was not collected"):
        observe((InputMean,), torch.ones(1, 2), torch.ones(1, 2))[Gram]


class Block(nn.Module):
    """q, k and v read one tensor; o another; the MLP reads a third twice."""

    def __init__(self, dim=6):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(dim, 8), nn.Linear(dim, 8), nn.Linear(8, dim)

    def forward(self, x):
        h = x * 2
        a = self.o(self.q(h) + self.k(h) + self.v(h))
        h = a + x
        return self.down(self.gate(h).relu() * self.up(h))


def sites_of(block):
    return [Site(name, m) for name, m in block.named_modules() if isinstance(m, nn.Linear)]


def hooks(model):
    return sum(len(m._forward_pre_hooks) for m in model.modules())


def test_maps_that_read_one_tensor_share_one_gram():
    block, batches = Block(), [torch.randn(2, 9, 6) for _ in range(3)]
    with watching(sites_of(block), (Gram, OutNorms)) as seen:
        for x in batches:
            block(x)
            gc.collect()
    gram = {name: seen[name][Gram] for name in seen}
    assert gram["q"] is gram["k"] is gram["v"] and gram["gate"] is gram["up"]
    assert len({id(g) for g in gram.values()}) == 4
    assert seen["q"][OutNorms] is not seen["k"][OutNorms]
    x = torch.cat([b.reshape(-1, 6) for b in batches]).double() * 2
    torch.testing.assert_close(gram["k"].value.double(), x.T @ x / len(x), rtol=1e-5, atol=1e-5)
    assert gram["v"].tokens == 54 and hooks(block) == 0


def test_equal_inputs_in_turn_are_not_one_input():
    """A freed tensor's memory is used again at once: addresses would take these three for one."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            return sum(m(x + i).sum() for i, m in enumerate(self.maps))

    model, x = Chain(), torch.randn(50, 4)
    with torch.no_grad(), watching(sites_of(model), (InputMean,)) as seen:
        model(x)
    for i in range(3):
        torch.testing.assert_close(seen[f"maps.{i}"][InputMean].value, (x + i).mean(0), rtol=1e-4, atol=1e-5)


def test_a_tensor_changed_in_place_is_another_input():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            self.a(x)
            return self.b(x.add_(1))

    model = InPlace()
    with torch.no_grad(), watching(sites_of(model), (InputMean,)) as seen:
        model(torch.zeros(5, 4))
    assert seen["a"][InputMean].value.tolist() == [0.0] * 4 and seen["b"][InputMean].value.tolist() == [1.0] * 4


def test_sharing_works_in_inference_mode():
    block = Block()
    with torch.inference_mode(), watching(sites_of(block), (Gram,)) as seen:
        block(torch.randn(4, 6))
    assert seen["q"][Gram] is seen["v"][Gram]


def test_maps_that_part_after_the_first_batch_are_refused():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, how):
            self.a(x)
            return {"same": self.b, "other": lambda x: self.b(x + 1), "none": lambda x: x}[how](x)

    for later in ("other", "none"):
        model = Fickle()
        with pytest.raises(ValueError, match="b read what a read at first"), watching(sites_of(model), (Gram,)):
            model(torch.randn(3, 4), "same")
            model(torch.randn(3, 4), later)
        assert hooks(model) == 0


def test_a_reader_that_comes_late_does_not_share():
    """It would inherit tokens that it never read."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, both):
            return self.a(x) + (self.b(x) if both else 0)

    model = Late()
    with watching(sites_of(model), (InputMean,)) as seen:
        model(torch.zeros(3, 4), False)
        model(torch.ones(3, 4), True)
    assert seen["a"][InputMean].tokens == 6 and seen["b"][InputMean].tokens == 3
    assert seen["b"][InputMean].value.tolist() == [1.0] * 4


def test_parts_of_a_fused_map_share_by_construction():
    fused = nn.Linear(4, 9)
    parts = [Site(f"qkv.{i}", fused, part=slice(3 * i, 3 * i + 3)) for i in range(3)]
    with watching(parts, (Gram,)) as seen:
        fused(torch.randn(8, 4))
        assert hooks(fused) == 1
    assert seen["qkv.0"][Gram] is seen["qkv.2"][Gram] and seen["qkv.0"][Gram].tokens == 8


def test_padding_is_left_out():
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 4, 3)
    real = torch.tensor([[False, True, True, True], [True, True, False, False]])
    with watching([Site("0", model[0])], (InputMean,)) as seen:
        seen.real = real
        model(x)
    torch.testing.assert_close(seen["0"][InputMean].value, x[real].mean(0))
    with (
        pytest.raises(ValueError, match=r"0: reads \(2, 4, 3\).*\(2, 2\)"),
        watching([Site("0", model[0])], (Gram,)) as seen,
    ):
        seen.real = real[:, :2]
        model(x)


def test_the_input_may_be_found_elsewhere():
    """Experts get theirs from the middle of a module's arguments."""

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 5, 3))

        def forward(self, x, *, which):
            return torch.einsum("ti,toi->to", x, self.weight[which])

    def tokens_of(expert):
        return lambda module, args, kwargs: args[0][kwargs["which"] == expert]

    stack, x, which = Stack(), torch.randn(6, 3), torch.tensor([0, 1, 1, 0, 1, 1])
    places = [Site(f"experts.{e}", stack, index=e, inputs=tokens_of(e)) for e in (0, 1)]
    with watching(places, (InputSquares, OutNorms, GradSquares)) as seen:
        stack(x, which=which).sum().backward()
    for e in (0, 1):
        mine = x[which == e]
        torch.testing.assert_close(seen[f"experts.{e}"][InputSquares].value, mine.square().mean(0))
        torch.testing.assert_close(seen[f"experts.{e}"][OutNorms].value, stack.weight[e].detach().norm(dim=0))
        expected = mine.sum(0).expand(5, 3).square()
        torch.testing.assert_close(seen[f"experts.{e}"][GradSquares].value, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_each_backward_pass_of_a_transposed_part():
    class Conv(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            return x @ self.weight

    conv, expected = Conv(), torch.zeros(2, 3)
    with watching([Site("c", conv, transposed=True, part=slice(2, 4))], (GradSquares,)) as seen:
        for _ in range(2):
            x = torch.randn(5, 3)
            (conv(x)[:, 2:].sum()).backward()  # .grad adds up; the statistic must not see the sum
            expected += x.sum(0).expand(2, 3).square()
    torch.testing.assert_close(seen["c"][GradSquares].value, expected / 2, rtol=1e-4, atol=1e-5)
    assert not conv.weight._backward_hooks


def test_bad_inputs_are_named_with_their_site():
    block = Block()
    block.up.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"down: its inputs are NaN or infinite"), watching(sites_of(block), (Gram,)):
        block(torch.randn(3, 6))
    with pytest.raises(ValueError, match="q: no token reached it"), watching(sites_of(block), (Gram,)):
        pass
    assert hooks(block) == 0


def test_hooks_go_when_the_model_fails():
    block = Block()
    with pytest.raises(RuntimeError), watching(sites_of(block), (Gram,)):
        block(torch.randn(3, 5))
    assert hooks(block) == 0


@pytest.mark.parametrize("room", ROOMS)
def test_the_examples_are_right(room):
    known = {"torch": torch, "Site": Site, **{n: v for n, v in vars(fewer.calibrate).items() if n[0].isupper()}}
    known["observe"] = observe
    failed, tried = doctest.testmod(importlib.import_module(f"fewer.calibrate.{room}"), extraglobs=known)
    assert tried and not failed
