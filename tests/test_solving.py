"""Budgets in the user's unit: what is found reaches the target, and a little less does not."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from test_attending import cached, ids
from test_meter import truth
from tiny import build
from transformers import DynamicCache

import fewer
from fewer.core import Budget, target
from fewer.recipe.meter import Meter
from fewer.recipe.solving import solved
from fewer.recipe.steps import recipe, step


@pytest.mark.parametrize(
    "text",
    ["200MB", "64kB per token", "1536B", "95% of mass", "2.5% of error", "2ms", "0.5ms at 32768", "30us", "1.5s"],
)
def test_a_target_reads_as_it_is_written(text):
    assert str(target(text)) == text
    assert str(step(f"cache/snap_kv {text} by ada")) == f"cache/snap_kv {text} by ada"
    assert str(step(f"attention/quest {text} @ decode")) == f"attention/quest {text} @ decode"


@pytest.mark.parametrize("text, same", [("1 KB", "1kB"), ("2MiB", "2097152B"), ("1000000B", "1MB"), (".5 ms", "0.5ms")])
def test_other_spellings(text, same):
    assert str(target(text)) == same


def test_what_is_no_target():
    assert target("50%") is target("64") is target("2:4") is target("2 minutes") is None
    for text in ("0MB", "0% of mass", "101% of mass", "0ms"):
        with pytest.raises(ValueError, match="is nothing, or more than everything"):
            target(text)
    with pytest.raises(ValueError, match="weights/wanda takes a budget, not '95% of mass'"):
        step("weights/wanda 95% of mass")


def test_bytes_are_those_that_are_stored():
    model, x = build("llama"), ids(1, 96)
    for amount in (10_000, 14_000):
        with fewer.apply(model, f"cache/key_norm {amount}B") as applied, torch.no_grad():
            cached(model, x, DynamicCache(config=model.config))
            stored = sum(c.bytes_after for c in applied.attending.changes())
        assert amount - 16 * 273 < stored <= amount, "within a page"
        assert "as a token takes 273 bytes at 2 modules" in applied.notes[0]
    each = solved(model, recipe("cache/key_norm 137B per token")).steps[0].budget
    assert abs(each.keep - Fraction(137, 273)) < 1e-3
    with pytest.raises(ValueError, match="a page of 16 tokens takes 4368 bytes at these 2 modules"):
        solved(model, recipe("cache/key_norm 1kB"))


def read_by(s, x):
    keep = s.method.attend(torch.zeros(1, 2, x.shape[1], 8), torch.zeros(1, 2, x.shape[1], 8), s.budget)
    rows, block = s.method.rows, s.method.block
    return keep.repeat_interleave(rows, 2).repeat_interleave(block, 3)[..., : x.shape[1], : x.shape[1]].tril()[:, :1]


@pytest.mark.parametrize("what, share", [("mass", 0.6), ("error", 0.6)])
def test_the_least_budget_that_reaches_a_mass_or_an_error(what, share):
    """Held against transformers' own weights, in the first layer."""
    model, x = build("llama"), ids(2, 64)
    text = f"attention/streaming(rows=4, block=4) {share:.0%} of {what} @ *.0.*, prefill"
    (found,) = solved(model, recipe(text), x).steps
    less = replace(found, budget=Budget(found.budget.keep - Fraction(1, 128)))

    def reached(s):
        mass, error = truth(model, x, read_by(s, x), slice(32, None))
        return mass.mean() >= share if what == "mass" else error.square().mean() ** 0.5 <= share * 1.02

    assert found.budget.keep < 1 and reached(found) and not reached(less), found


def test_what_is_remembered_reaches_a_mass_too():
    """Held against the meter: half of the text is read and partly forgotten, then the rest."""
    model, x = build("llama"), ids(1, 64)
    (found,) = solved(model, recipe("cache/key_norm 80% of mass @ *.0.*"), x).steps
    for keep, enough in ((found.budget.keep, True), (found.budget.keep - Fraction(2, 128), False)):
        with fewer.apply(model, replace(found, budget=Budget(keep)), meter=Meter(rows=32)) as applied, torch.no_grad():
            cache = DynamicCache(config=model.config)
            for part in x.split(32, 1):
                cached(model, part, cache)
            seen = next(s for (m, _), s in applied.attending.found.items() if m is model.model.layers[0].self_attn)
        assert (seen.mass[-1].mean() >= 0.8) == enough, "of the second half"


def test_each_module_gets_its_own_and_a_divided_budget_is_one():
    model, x = build("llama"), ids(1, 64)
    steps = solved(model, recipe("cache/key_norm 85% of mass"), x).steps
    names = {w for s in steps for w in s.where.split(", ")}
    assert names in ({"*"}, {"model.layers.0.self_attn", "model.layers.1.self_attn"})
    assert len(solved(model, recipe("cache/key_norm 85% of mass by ada"), x).steps) == 1
    with fewer.apply(model, "attention/quest(block=8) 60% of mass @ decode", x) as applied:
        assert all(s.where.endswith("decode") and s.budget.keep <= 1 for s in applied.steps) and applied.notes


def test_without_text_scores_promise():
    model = build("llama")
    (found,) = solved(model, recipe("attention/twilight 90% of mass @ decode")).steps
    assert str(found) == "attention/twilight(p=0.9) 100% @ decode"
    for text in ("cache/key_norm 95% of mass", "attention/quest 95% of mass", "attention/twilight 5% of error"):
        with pytest.raises(ValueError, match="give data"):
            solved(model, recipe(text))


def test_milliseconds_by_measured_costs(monkeypatch):
    """One made-up machine: a module's 2 heads of 8 + 8 numbers take 136.5 bytes a token, the bounds of a block of 16 16 bytes."""
    from fewer.kernels import _costs

    costs = {"read": {"float32": {"launch": 1e-6, "byte": 1e-9}}, "choose": {"launch": 2e-6, "byte": 1e-9}}
    monkeypatch.setattr(_costs, "profiles", lambda: {"made up": {"device": "cpu", "attend_pages": costs}})
    _costs._profile.cache_clear()
    model = build("llama")
    (found,), (note,) = (
        getattr(solved(model, recipe("attention/quest 0.1ms at 2000 @ decode")), n) for n in ("steps", "notes")
    )
    slot, looked = 2 * (16 * 4 + 4) + 4 * 2 / 16, 2 * 2 * 8 * 4 / 16
    most = int((50e-6 - 3e-6 - 2000 * looked * 1e-9) / (slot * 1e-9))
    assert abs(found.budget.keep - most) <= 1, (found, most)
    cross = (2e-6 + found.budget.keep * slot * 1e-9) / ((slot - looked) * 1e-9)
    assert found.where.startswith("decode, beyond ") and abs(int(found.where.split()[-1]) - cross) <= 2
    assert "dense" in note
    (wide,) = solved(model, recipe("attention/quest 9ms at 2000 @ decode")).steps
    assert wide.budget.whole
    for text, words in (
        ("attention/quest 6us at 2000 @ decode", "one key alone takes"),
        ("attention/hip 1ms at 2000 @ decode", "looks at every key"),
    ):
        with pytest.raises(ValueError, match=words):
            solved(model, recipe(text))
    monkeypatch.setattr(_costs, "profiles", dict)
    _costs._profile.cache_clear()
    with pytest.raises(ValueError, match="no machine like this one was measured"):
        solved(model, recipe("attention/quest 1ms at 2000 @ decode"))
    monkeypatch.undo()
    _costs._profile.cache_clear()


def test_up_to_the_crossover_all_is_read():
    model, x = build("llama"), ids(1, 41)

    def said(place):
        with fewer.apply(model, f"attention/quest(block=8) 8 @ decode{place}") as applied, torch.no_grad():
            cache = DynamicCache(config=model.config)
            cached(model, x[:, :-1], cache)
            last = cached(model, x[:, -1:], cache).logits[:, -1]
            assert str(applied.steps[0]).endswith(f"@ decode{place}")
            return last

    with torch.no_grad():
        plain = model(x).logits[:, -1]
    assert torch.allclose(said(", beyond 41"), plain, atol=1e-4)
    assert not torch.allclose(said(", beyond 40"), plain, atol=1e-4)
    with pytest.raises(ValueError, match="leave out 'beyond 9'"):
        fewer.apply(model, "cache/key_norm 50% @ beyond 9").__enter__()


def test_costs_on_file_tell_of_a_crossover():
    from fewer.kernels.attend_pages.cost import Decoding, estimate, examples, kind

    table, pages = torch.zeros(1, 2, 3, dtype=torch.int32), torch.zeros(9, 16, 8)
    args = torch.zeros(1, 2, 1, 8), pages, pages, torch.zeros(9, 16), table, torch.zeros(1, 1)
    assert kind(*args, 1.0) == Decoding(6 * 16 * 16 * 4, torch.float32, False)
    long, some, short = (
        estimate(Decoding(n * 4096, torch.bfloat16, False, chosen))["cpu"]
        for n, chosen in ((131072, 0), (2048, 8192 * 4096), (2048, 0))
    )
    assert short < some < long
    assert len(list(examples())) == 6
