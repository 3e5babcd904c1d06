"""The meter: what it reads is the mass and the error that a mask shows; below the floor, what is said is exact and budgets grow."""

import pytest
import torch
from test_attending import generate, ids, padded
from tiny import build

import fewer
from fewer.core import budget
from fewer.core.spell import method_of
from fewer.recipe.meter import Meter, lines

STEP = "attention/streaming(sinks=4, rows=4, block=4) 25% @ prefill"


def truth(model, x, keep, rows=slice(None)):
    """Kept mass and error of the first layer, `[heads]`, from transformers' own weights in float64."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    values = {}
    hook = model.model.layers[0].self_attn.v_proj.register_forward_hook(lambda m, a, out: values.update(v=out))
    with torch.no_grad():
        w = model(x, output_attentions=True).attentions[0].double()
    hook.remove()
    model.set_attn_implementation(before)
    v = values["v"].double().unflatten(-1, (2, -1)).transpose(1, 2).repeat_interleave(2, 1)
    read = w * keep
    mass = read.sum(-1)
    wrong = (read / mass[..., None] - w) @ v
    error = wrong.square().sum(-1)[:, :, rows].sum((0, 2)) / (w @ v).square().sum(-1)[:, :, rows].sum((0, 2))
    return mass[:, :, rows].mean((0, 2)), error.sqrt()


def tokens_read(x):
    m = method_of("streaming(sinks=4, rows=4, block=4)", "attention")
    keep = m.attend(torch.zeros(1, 2, x.shape[1], 8), torch.zeros(1, 2, x.shape[1], 8), budget("25%"))
    return keep.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., : x.shape[1], : x.shape[1]].tril()[:, :1]


def test_a_meter_reads_what_a_mask_shows():
    model, x = build("llama"), ids(2, 30)
    mass, error = truth(model, x, tokens_read(x))
    with fewer.apply(model, STEP, meter=Meter(rows=30)) as applied, torch.no_grad():
        model(x)
        found = [r for r in applied.attending.readings() if r.module == "model.layers.0.self_attn"]
    assert [(r.head, r.phase, r.rows, r.budget) for r in found] == [(h, "prefill", 60, "25%") for h in range(4)]
    assert torch.tensor([r.mass.value for r in found]).allclose(mass.float(), atol=1e-5)
    assert torch.tensor([r.error for r in found]).allclose(error.float(), atol=1e-4)
    (row,) = lines(found)
    assert row["mass"] == pytest.approx(mass.mean().item(), abs=1e-5) and row["least"] == min(
        r.mass.value for r in found
    )


def test_some_rows_tell_of_all():
    """On a trained model, 32 rows of 320, other ones at each module: their mean mass is within .02 of that of all rows."""
    from fewer.data import corpus, windows
    from fewer.models import open_model

    model, tokenizer = open_model("bundled")
    x = windows(corpus("stdlib", "test"), tokenizer, 320, 1, 0)
    told = []
    for rows in (32, 320):
        with fewer.apply(
            model, "attention/streaming(rows=16, block=16) 25% @ prefill", meter=Meter(rows=rows)
        ) as applied:
            with torch.no_grad():
                model(x)
            told.append([line["mass"] for line in lines(applied.attending.readings())])
    some, every = (torch.tensor(t) for t in told)
    assert every.min() < 0.9 and (some.mean() - every.mean()).abs() < 0.02, (some, every)
    assert (some - every).abs().max() < 0.12


def test_below_the_floor_what_is_said_is_exact_and_the_budget_doubles():
    model, x = build("llama"), ids(2, 40)
    with torch.no_grad():
        plain = model(x).logits
        with fewer.apply(model, STEP, meter=Meter(floor=0.99)) as applied:
            assert torch.allclose(model(x).logits, plain, atol=1e-4)
            engine = applied.attending
            assert [line["budget"] for line in lines(engine.readings())] == ["50%", "50%"]
            assert "prefill: 0." in engine.changed[0] and "50% instead of 25% from now on" in engine.changed[0]
            model(x)
            assert all(w.prefill is None for w in engine.ways.values()) and "dense from now on" in engine.changed[-1]
            model(x)
            assert len(engine.changed) == 4
        with fewer.apply(model, STEP) as applied:
            assert not torch.allclose(model(x).logits, plain, atol=1e-4)


@pytest.mark.parametrize(
    "step", ["cache/key_norm 25%", "attention/quest(block=8) 8 @ decode", "cache/key_norm 9\n" + STEP]
)
def test_what_was_forgotten_is_remembered_by_the_meter(step):
    """With a floor of 1 and a look at each step, padded rows generate what the dense model generates."""
    model = build("llama")
    x, mask = padded([ids()[0], ids(seed=1)[0, :17]])
    plain = generate(model, x, attention_mask=mask)
    with fewer.apply(model, step, every=2, meter=Meter(every=1, floor=1.0)) as applied:
        assert torch.equal(generate(model, x, attention_mask=mask), plain)
        rows = lines(applied.attending.readings())
    decoding = [row for row in rows if row["phase"] == "decode"]
    assert len(decoding) == 2 and all(0 < row["mass"] < 1 and row["error"] > 0 for row in decoding)
    assert all(change.error > 0 for change in applied.changes)


def test_every_so_many_steps():
    model, x = build("llama"), ids(1, 30)
    with fewer.apply(model, "attention/quest(block=8) 8 @ decode", meter=Meter(every=4)) as applied:
        generate(model, x, max_new_tokens=9, min_new_tokens=9)
        assert [line["rows"] for line in lines(applied.attending.readings()) if line["phase"] == "decode"] == [2, 2]


def test_what_cannot_be_is_refused():
    for wrong, words in (({"every": 0}, "every=0"), ({"rows": 0}, "rows=0"), ({"floor": 1.5}, "floor=1.5")):
        with pytest.raises(ValueError, match=words):
            Meter(**wrong)
