"""Mixers in running models: the same word by word as at once, learnt as parameters, gone on leaving."""

import pytest
import torch
from test_attending import cached, generate, ids, padded, prefilled
from tiny import build
from transformers import DynamicCache

import fewer
from fewer.attention import Held, read_parts, write_parts

WHOLE = [
    "attention/entmax 100%",
    "attention/adaptive_entmax 100%",
    "attention/rela 100%",
    "attention/sigmoid_window 8",
    "attention/differential 100%",
    "attention/shared_differential(rank=2) 100%",
    "attention/combiner(span=4) 100%",
    "attention/scatterbrain 25%",
    "attention/sea(width=8) 25%",
    "attention/modular_activation 8",
]
SOME = ["llama", "gemma2", "gpt_oss", "gpt2"]  # caps and windows, sinks, no rotation
DENSE = "attention/pladis(strength=0.0) 100%"  # softmax, the long way


@pytest.mark.parametrize("family", SOME)
def test_softmax_the_long_way_is_the_model_itself(family):
    model, x = build(family), ids(2)
    x, mask = padded([x[0], x[1, :19]])
    with torch.no_grad():
        plain = model(x, attention_mask=mask).logits
        last = cached(model, x[:, -1:], prefilled(model, x, mask), attention_mask=mask).logits
        words = generate(model, x, attention_mask=mask, num_beams=2)
        with fewer.apply(model, DENSE):
            assert torch.allclose(model(x, attention_mask=mask).logits[mask.bool()], plain[mask.bool()], atol=1e-3)
            again = cached(model, x[:, -1:], prefilled(model, x, mask), attention_mask=mask).logits
            assert torch.allclose(again, last, atol=1e-3)
            assert torch.equal(generate(model, x, attention_mask=mask, num_beams=2), words)
    assert torch.allclose(model(x, attention_mask=mask).logits, plain, atol=1e-5)


@pytest.mark.parametrize("step", WHOLE)
def test_rows_chunks_and_words_change_nothing(step):
    model, rows = build("llama"), [ids()[0, :18], ids(seed=1)[0, :11]]
    x, mask = padded(rows)
    with fewer.apply(model, step), torch.no_grad():
        places = (mask.cumsum(-1) - 1).clamp(min=0)  # as `generate` counts them: hashes see how a key is rotated
        whole = model(x, attention_mask=mask, position_ids=places).logits
        for row, said in zip(rows, whole, strict=True):
            assert torch.allclose(model(row[None], use_cache=False).logits[0], said[-len(row) :], atol=1e-4)
        for chunk in (1, 7):
            cache = DynamicCache(config=model.config)
            parts = [cached(model, part, cache).logits for part in rows[0][None].split(chunk, 1)]
            assert torch.allclose(torch.cat(parts, 1)[0], whole[0], atol=1e-4)


def test_parts_are_parameters_that_learn_and_are_handed_back(tmp_path):
    model, x, file = build("llama"), ids(2, 12), tmp_path / "alpha.safetensors"
    before, step = {n: p.clone() for n, p in model.named_parameters()}, "attention/adaptive_entmax(alpha=1.3) 100%"
    with fewer.apply(model, step) as applied:
        mine = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert mine.keys() == {f"model.layers.{i}.self_attn.mixer.alpha" for i in range(2)}
        optimizer, losses = torch.optim.Adam(mine.values(), lr=0.3), []
        for _ in range(5):
            loss = model(x, labels=x).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            learnt = model(x).logits
        write_parts(file, applied.attending.learnt(), {})
    assert losses[-1] < losses[0]
    assert before.keys() == dict(model.named_parameters()).keys() and not hasattr(
        model.model.layers[0].self_attn, "mixer"
    )
    with fewer.apply(model, f"attention/adaptive_entmax(file={file}) 100%") as applied, torch.no_grad():
        assert torch.equal(model(x).logits, learnt)
        assert all(Held(p) == read_parts(file)[n] for n, p in applied.attending.learnt().items())
    parts = read_parts(file)
    write_parts(file, {n: {"alpha": t["alpha"][:2]} for n, t in parts.items()}, {})
    with (
        pytest.raises(ValueError, match=r"of shape \[2\]; here it must be \[4\]"),
        fewer.apply(model, f"attention/adaptive_entmax(file={file}) 100%"),
    ):
        pass
    write_parts(file, {"model.layers.0.self_attn": {"alpha": torch.zeros(4)}}, {})
    with (
        pytest.raises(ValueError, match=r"holds no 'alpha' of model.layers.1.self_attn"),
        fewer.apply(model, f"attention/adaptive_entmax(file={file}) 100%"),
    ):
        pass
    with (
        pytest.raises(FileNotFoundError, match="nothing learnt at"),
        fewer.apply(model, f"attention/adaptive_entmax(file={tmp_path}/no) 100%"),
    ):
        pass


def test_what_parts_learn_beside_the_task_is_owed_by_each_layer():
    model, x = build("llama"), ids(1, 12)
    with fewer.apply(model, "attention/sea(width=8) 25%") as applied:
        applied.attending.owed = []
        model(x, use_cache=False)
        assert len(applied.attending.owed) == 2
        sum(applied.attending.owed).backward()
        parts = dict(model.model.layers[0].self_attn.mixer.items())
    assert parts["row"].grad.any() and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "step, words",
    [
        ("attention/entmax 50%", "write 'attention/entmax 100%'"),
        ("attention/adaptive_entmax(alpha=2.0) 100%", "between 1 and 2"),
        ("attention/entmax 100% @ decode", "in all phases"),
        ("attention/entmax 100%\nattention/quest 10% @ decode", "write one of them"),
    ],
)
def test_what_cannot_be_is_refused_first(step, words):
    model = build("llama")
    with pytest.raises((ValueError, LookupError), match=words), fewer.apply(model, step):
        pass
    assert model.config._attn_implementation == "sdpa"
