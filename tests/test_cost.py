"""Bytes, arithmetic, seconds and memory: by formula, by counting calls, by a clock that the test holds."""

import types

import torch
from tiny import build
from torch import nn

from fewer import measure
from fewer.measure import seconds


def test_tied_and_shared_memory_counts_once():
    plain, tied = build("llama"), build("llama_tied")
    assert measure.bytes_of(plain) - measure.bytes_of(tied) == 99 * 32 * 4
    both = nn.ModuleList([nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)])
    assert measure.bytes_of(both) == 2 * 48
    both[1].weight = nn.Parameter(both[0].weight.data)  # another parameter, the same memory
    both.register_buffer("mask", torch.ones(10, dtype=torch.bool))
    assert measure.bytes_of(both) == 48 + 10
    assert measure.bytes_of(both.to("meta")) == 2 * 48 + 10


class Stack(nn.Module):
    """Linear maps one after the other, dressed as a language model."""

    def __init__(self, *maps):
        super().__init__()
        self.words, self.maps = nn.Embedding(50, 8), nn.Sequential(*maps)

    def forward(self, input_ids):
        return types.SimpleNamespace(logits=self.maps(self.words(input_ids)))


IDS = torch.zeros(2, 5, dtype=torch.long)


def test_flops_of_linear_maps_are_two_for_each_weight_and_token():
    model = Stack(nn.Linear(8, 16), nn.Linear(16, 50, bias=False))
    assert measure.flops(model, IDS) == 2 * (8 * 16 + 16 * 50) * 10 == measure.useful_flops(model, IDS)


def test_useful_flops_leave_out_the_zeros_of_a_masked_weight():
    model = Stack(nn.Linear(8, 16), nn.Linear(16, 50, bias=False))
    model.maps[1].weight.data[:, :12] = 0  # of 16
    assert measure.flops(model, IDS) == 2 * (8 * 16 + 16 * 50) * 10
    assert measure.useful_flops(model, IDS) == 2 * (8 * 16 + 4 * 50) * 10


def test_a_module_that_knows_its_flops_is_believed():
    class Packed(nn.Linear):
        def flops(self, tokens):
            return 7 * tokens

    model = Stack(nn.Linear(8, 16), Packed(16, 50))
    model.maps[1].weight.data.zero_()
    assert measure.flops(model, IDS) == 2 * 8 * 16 * 10 + 7 * 10 == measure.useful_flops(model, IDS)


def test_flops_of_a_llama_are_its_matrices_and_its_attention():
    llama = build("llama")
    ids = torch.ones(5, 12, dtype=torch.long)
    maps = sum(p.numel() for n, p in llama.named_parameters() if p.ndim == 2 and "embed" not in n)
    attention = 2 * 5 * 4 * 12 * 12 * (8 + 8) * 2  # 2 x windows x heads x rows x keys x (widths) x layers
    rotary = measure.flops(llama, ids) - 2 * maps * ids.numel() - attention
    assert 0 <= rotary <= 2 * 5 * 4 * 12  # the angles are an outer product too: 4 frequencies x 12 places


def test_functions_are_timed_in_turns():
    calls = []
    found = seconds({n: lambda n=n: calls.append(n) for n in "abc"}, rounds=6, warmup=3)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 27, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds) and set(rounds) == {"abc", "bca", "cab"}
    assert {n: t.n for n, t in found.items()} == {"a": 6, "b": 6, "c": 6}
    assert all(0 <= t.low <= t.median <= t.high for t in found.values())


def test_the_median_and_the_quartiles_are_of_what_the_clock_said(monkeypatch):
    clock = iter([t for spent in (9, 1, 2, 3, 4, 5) for t in (0.0, float(spent))])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert seconds({"a": lambda: None}, rounds=5, warmup=1)["a"] == measure.Timing(3.0, 2.0, 4.0, 5)


def test_peak_memory_sees_what_was_held_for_a_moment():
    def hold():
        torch.ones(50_000_000)  # 200 MB, gone on return

    assert 195e6 < measure.peak_memory(hold) < 260e6
    assert measure.peak_memory(lambda: None) < 20e6
