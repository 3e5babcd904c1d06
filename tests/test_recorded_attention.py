"""Decoding recorded as CUDA graphs is decoding: the same tokens, whatever comes between."""

import pytest
import torch
from test_attending import cached, generate, ids, padded
from tiny import build
from transformers import DynamicCache

import fewer
from fewer.recipe import recorded
from fewer.recipe.attending import attending_to
from fewer.recipe.forwarded import forwarded
from fewer.recipe.steps import recipe

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
STEPS = [
    "attention/quest(rows=4, block=8) 16 @ decode",
    "attention/quest(rows=4, block=16) 32 @ decode",
    "attention/quest(rows=4, block=8) 50% @ decode",
    "cache/key_norm 50%",
    "cache/snap_kv(window=4) 24\nattention/quest(rows=4, block=8) 16 @ decode",
]


def test_a_model_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="one GPU"), fewer.apply(build("llama"), STEPS[0], record=True):
        pass
    with (
        pytest.raises(ValueError, match="there are none"),
        fewer.apply(build("llama"), "weights/magnitude 50%", record=True),
    ):
        pass


class Acted(recorded.Tape):
    """A tape that does the step again instead, with the CPU's notes as they were when it was recorded."""

    engine, times = None, 0
    __init__ = object.__init__
    NOTES = ("seen", "since", "steps", "digested_to", "folds")

    def notes(self):
        return [([getattr(m, n) for n in self.NOTES], m.store.length, m.store.room) for m in self.engine.made]

    def note(self, all_of_them):
        for m, (values, m.store.length, m.store.room) in zip(self.engine.made, all_of_them, strict=True):
            for name, value in zip(self.NOTES, values, strict=True):
                setattr(m, name, value)

    def record(self, do):
        self.do, self.before, self.done = do, self.notes(), True
        self.answer = do()
        return self.answer

    def play(self):
        if not self.done:
            now = self.notes()
            self.note(self.before)
            self.answer.logits.copy_(self.do().logits)
            self.note(now)
            Acted.times += 1
        self.done = False


@pytest.mark.parametrize("step", [STEPS[1], STEPS[2], STEPS[4]])
def test_what_a_tape_would_repeat_is_what_would_have_been_done(step, monkeypatch):
    model, (x, mask) = build("llama"), padded([ids()[0], ids(seed=1)[0, :17]])
    with fewer.apply(model, step, every=16):
        plain = generate(model, x, attention_mask=mask, max_new_tokens=24)
    monkeypatch.setattr(recorded, "Tape", Acted)
    with attending_to(model, recipe(step), 16) as engine:
        monkeypatch.setattr(Acted, "engine", engine)
        monkeypatch.setattr(Acted, "times", 0)
        with forwarded(model, recorded.Recorded(model, engine)._forward):
            assert torch.equal(generate(model, x, attention_mask=mask, max_new_tokens=24), plain)
    assert Acted.times > 12


@CUDA
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss", "gpt2"])
@pytest.mark.parametrize("step", STEPS)
def test_what_is_replayed_is_what_would_have_been_done(family, step):
    model = build(family).cuda()
    x, mask = (t.cuda() for t in padded([ids()[0], ids(seed=1)[0, :17]]))
    found = []
    for record in (False, True):
        with fewer.apply(model, step, every=16, record=record):
            found.append(generate(model, x, attention_mask=mask, max_new_tokens=30))
    assert torch.equal(*found)
    assert "forward" not in vars(model)


@CUDA
def test_chunks_crops_and_more_room_come_between():
    model, x = build("llama").cuda(), ids(1, 60).cuda()
    found = []
    for record in (False, True):
        out = []
        with fewer.apply(model, STEPS[0], record=record), torch.no_grad():
            cache = DynamicCache(config=model.config)
            cached(model, x[:, :20], cache)
            for a, b in ((20, 26), (26, 31), (31, 32), (32, 44)):
                parts = [x[:, a:b]] if b - a == 5 else x[:, a:b].split(1, 1)
                out += [cached(model, part, cache).logits[:, -1].clone() for part in parts]
            cache.crop(-4)
            out += [cached(model, part, cache).logits[:, -1].clone() for part in x[:, 44:].split(1, 1)]
        found.append(torch.cat(out))
    assert torch.allclose(*found, atol=1e-4)


@CUDA
def test_a_step_is_recorded_once_and_replayed(monkeypatch):
    model, x, played, replay = build("llama").cuda(), ids(1, 30).cuda(), [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (played.append(id(graph)), replay(graph))[1])
    with fewer.apply(model, STEPS[0], record=True):
        generate(model, x, max_new_tokens=40)
    assert len(played) == 40 - 2 and len(set(played)) == 1  # the prompt's token, and one as ever


def test_what_is_around_attention_can_be_compiled():
    model, x = build("llama", layers=1), ids(1, 32)
    found = []
    for how in (lambda f: f, lambda f: torch.compile(f, dynamic=False, backend="eager")):
        with fewer.apply(model, STEPS[0]), torch.no_grad():
            cache, step = DynamicCache(config=model.config), how(model.forward)
            cached(model, x[:, :30], cache)
            found.append([cached(step, part, cache).logits for part in x[:, 30:].split(1, 1)])
    assert torch.allclose(torch.cat(found[0]), torch.cat(found[1]), atol=1e-5)
