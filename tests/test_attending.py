"""Attention and cache in running models: the full budget is the model itself, and what is kept is what was asked for."""

import inspect

import pytest
import torch
from tiny import build
from transformers import DynamicCache, LlamaForCausalLM

import fewer
from fewer.recipe.steps import recipe

FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt_oss", "gpt2", "gpt_neox", "phi3"]
WHOLE = ["attention/quest(rows=4, block=8) 100% @ prefill,decode", "cache/key_norm 100%", "cache/random 100%"]


def ids(rows=1, length=30, seed=0):
    return torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(seed))


def generate(model, x, **options):
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(x)} | options
    return model.generate(x, **options)


NAME = next(n for n in ("cache", "past_key_values") if n in inspect.signature(LlamaForCausalLM.forward).parameters)


def cached(model, x, cache, **options):
    """One run of a model on a cache, whatever transformers calls it."""
    return model(x, use_cache=True, **{NAME: cache}, **options)


def padded(rows):
    """Left padding, as `generate` wants it."""
    wide = max(len(r) for r in rows)
    x = torch.stack([torch.cat([r.new_zeros(wide - len(r)), r]) for r in rows])
    return x, torch.stack([torch.arange(wide) >= wide - len(r) for r in rows]).long()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("step", WHOLE)
def test_a_full_budget_is_the_model_itself(family, step):
    model, x = build(family), ids(2)
    before = model.config._attn_implementation
    x, mask = padded([x[0], x[1, :19]])
    with torch.no_grad():
        plain = model(x, attention_mask=mask).logits
        last = cached(model, x[:, -1:], prefilled(model, x, mask), attention_mask=mask).logits
        with fewer.apply(model, step):
            ours = model(x, attention_mask=mask).logits
            again = cached(model, x[:, -1:], prefilled(model, x, mask), attention_mask=mask).logits
    real = mask.bool()
    assert torch.allclose(ours[real], plain[real], atol=1e-3)
    assert torch.allclose(again, last, atol=1e-3)
    left = model(x, attention_mask=mask).logits  # experts' sums may come out otherwise in their last bit, run by run
    assert torch.allclose(left, plain, atol=1e-5) and model.config._attn_implementation == before


def prefilled(model, x, mask):
    cache = DynamicCache(config=model.config)
    cached(model, x[:, :-1], cache, attention_mask=mask[:, :-1])
    return cache


@pytest.mark.parametrize("family", FAMILIES)
def test_a_full_budget_generates_the_same(family):
    """Each family by one of the steps: that each step is right in each family, is shown above."""
    model, step = build(family), WHOLE[FAMILIES.index(family) % len(WHOLE)]
    x, mask = padded([ids()[0], ids(seed=1)[0, :17]])
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "temperature": 0.8}):
        torch.manual_seed(0)
        plain = generate(model, x, attention_mask=mask, **options)
        with fewer.apply(model, step):
            torch.manual_seed(0)
            assert torch.equal(generate(model, x, attention_mask=mask, **options), plain), options


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("chunk", [1, 7, 17, 40])
@pytest.mark.parametrize("step", WHOLE)
def test_chunks_change_nothing_at_full_budget(family, chunk, step):
    model, x = build(family), ids(2, 40)
    with torch.no_grad():
        plain = model(x).logits
        with fewer.apply(model, step):
            cache = DynamicCache(config=model.config)
            parts = [cached(model, part, cache).logits for part in x.split(chunk, 1)]
    assert torch.allclose(torch.cat(parts, 1), plain, atol=1e-3)


@pytest.mark.parametrize(
    "step", ["cache/key_norm 50%", "cache/random 25%", "attention/quest(rows=4, block=8) 16", "cache/key_norm 9"]
)
def test_a_batch_with_padding_is_its_rows(step):
    model = build("llama")
    rows = [ids()[0], ids(seed=1)[0, :17]]
    x, mask = padded(rows)
    with fewer.apply(model, step, every=4):
        both = generate(model, x, attention_mask=mask)[:, x.shape[1] :]
        for row, words in zip(rows, both, strict=True):
            alone = generate(model, row[None])[0, len(row) :]
            assert torch.equal(words[: len(alone)], alone)


def test_four_chunks_keep_half():
    model, x = build("llama"), ids(1, 48)
    with fewer.apply(model, "cache/key_norm 50%") as applied, torch.no_grad():
        cache = DynamicCache(config=model.config)
        for part in x.split(12, 1):
            cached(model, part, cache)
        assert cache.get_seq_length() == 48
        assert all((layer.memory.store.length == 24).all() for layer in cache.layers)
    assert all(change.kept == 0.5 for change in applied.changes)


def test_a_rule_that_looks_at_each_token_alone_keeps_the_same_in_chunks():
    """Of a number of tokens, the best of the best are the best; of a share, more is let go early."""
    model, x = build("llama"), ids(1, 48)
    kept = []
    for chunk in (48, 12, 5):
        with fewer.apply(model, "cache/random 16 @ model.layers.0.*"), torch.no_grad():
            cache = DynamicCache(config=model.config)
            for part in x.split(chunk, 1):
                cached(model, part, cache)
            kept.append(cache.layers[0].memory.store.read()[2])
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


def test_what_is_forgotten_frees_memory_of_each_head():
    model, x = build("llama"), ids(1, 60)
    with fewer.apply(model, "cache/key_norm 25%") as applied:
        generate(model, x, max_new_tokens=1)
    for change in applied.changes:
        assert (
            change.kept == 0.25 and change.bytes_after <= 0.45 * change.bytes_before
        )  # pages of 16, heads of 8 numbers


def test_what_stays_is_read_and_nothing_else():
    """One step of decoding after forgetting, by hand: attention over the kept slots of each head."""
    model, x = build("llama", layers=1), ids(1, 30)
    attention = model.model.layers[0].self_attn
    seen = {}
    hook = attention.o_proj.register_forward_pre_hook(lambda m, a: seen.update(out=a[0]))
    with fewer.apply(model, "cache/key_norm 40%", every=1000), torch.no_grad():
        cache = DynamicCache(config=model.config)
        cached(model, x[:, :-1], cache)
        k, v, at = (t.clone() for t in cache.layers[0].memory.store.read())
        assert at.shape == (1, 2, 11)  # of 29
        cached(model, x[:, -1:], cache)
        every_k, every_v, places = cache.layers[0].memory.store.read()
        assert (
            torch.equal(every_k[:, :, :-1], k) and torch.equal(every_v[:, :, :-1], v) and (places[:, :, -1] == 29).all()
        )
        hidden = model.model.layers[0].input_layernorm(model.model.embed_tokens(x[:, -1:]))
        q = attention.q_proj(hidden).view(1, 1, 4, 8).transpose(1, 2)
        cos, sin = model.model.rotary_emb(hidden, torch.tensor([[29]]))
        half = torch.cat([-q[..., 4:], q[..., :4]], -1)
        q = q * cos[:, None] + half * sin[:, None]
        weight = (q.unflatten(1, (2, 2)) @ every_k[:, :, None].mT / 8**0.5).softmax(-1)
        truth = (weight @ every_v[:, :, None]).flatten(1, 2).transpose(1, 2).flatten(2)
    hook.remove()
    assert torch.allclose(seen["out"], truth, atol=1e-5)


def test_several_turns_crop_and_positions():
    model, x = build("llama"), ids(1, 40)
    with fewer.apply(model, "cache/key_norm 100%"), torch.no_grad():
        cache = DynamicCache(config=model.config)
        cached(model, x[:, :20], cache)
        cached(model, x[:, 20:33], cache)
        cache.crop(-5)
        assert cache.get_seq_length() == 28
        ours = cached(model, x[:, 28:], cache).logits
    with torch.no_grad():
        assert torch.allclose(ours, model(x).logits[:, 28:], atol=1e-3)


def test_decoding_forgets_every_so_many_tokens():
    model, x = build("llama"), ids(1, 20)
    with fewer.apply(model, "cache/key_norm 10", every=4) as applied:
        generate(model, x, max_new_tokens=30, min_new_tokens=30)
    engine = applied.attending
    assert all(10 <= int(n) < 14 for m in engine.made for n in m.store.length.flatten())


def test_a_patterns_digests_are_those_of_the_whole():
    """Quest remembers boxes as pages fill: the same words as when it looks at all keys each time."""
    from fewer.attention.quest import Quest

    model, x = build("llama"), ids(2, 21)
    with fewer.apply(model, "attention/quest(rows=1, block=4) 12 @ decode") as applied:
        generate(model, x, max_new_tokens=15, min_new_tokens=15)
        for m in applied.attending.made:
            length = m.store.length
            low, high = Quest(block=4).digest(m.store.read()[0])
            full = int(length.max()) // 4
            held = m.digests.held
            assert torch.equal(held[0][:, :, : full - 1], low[:, :, : full - 1])
            assert torch.equal(held[1][:, :, : full - 1], high[:, :, : full - 1])


def test_steps_of_several_axes_at_once():
    model, x = build("llama"), ids()
    plain = generate(model, x)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    with fewer.apply(
        model, "weights/magnitude 50%\ncache/key_norm 50%\nattention/quest(block=8) 16 @ decode"
    ) as applied:
        assert not torch.equal(generate(model, x), plain)
    assert {c.step.partition("/")[0] for c in applied.changes} == {"weights", "cache"}
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert torch.equal(generate(model, x), plain)


def test_custom_masks_and_encoders():
    """A mask of our own; packed sequences; a model that looks both ways."""
    model, x = build("llama"), ids(1, 12)
    mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
    mask[..., 3:6] = False
    mask |= torch.eye(12, dtype=torch.bool)
    places = torch.cat([torch.arange(5), torch.arange(7)])[None]
    vit, bert = build("vit"), build("bert")
    pixels = torch.randn(2, 3, 16, 16)
    runs = [
        lambda: model(x, attention_mask=mask).logits,
        lambda: model(x, position_ids=places, use_cache=False).logits,
        lambda: vit(pixels).logits,
        lambda: bert(x).logits,
    ]
    with torch.no_grad():
        for m, run in zip((model, model, vit, bert), runs, strict=True):
            plain = run()
            with fewer.apply(m, "attention/quest 100% @ prefill"):
                assert torch.allclose(run(), plain, atol=1e-4)


@pytest.mark.parametrize(
    "step, words",
    [
        ("cache/key_norm 2:4", "a share or a number of tokens"),
        ("attention/quest 10% per tensor", "a share or a number of keys"),
        ("attention/quest(block=5) 10%", "blocks of 5"),
        ("cache/key_norm 50% @ *.mlp", "no attention module matches"),
        ("cache/keynorm 50%", "close: cache/key_norm"),
    ],
)
def test_what_cannot_be_done_is_refused_first(step, words):
    model = build("llama")
    with pytest.raises((ValueError, LookupError), match=words), fewer.apply(model, step):
        pass
    assert model.config._attn_implementation == "sdpa"


def test_a_cache_belongs_to_the_steps_that_filled_it():
    model, x = build("llama"), ids()
    cache = DynamicCache(config=model.config)
    with fewer.apply(model, "cache/key_norm 50%"), torch.no_grad():
        cached(model, x, cache)
    with pytest.raises(RuntimeError, match="stay inside"), torch.no_grad():
        cached(model, x[:, :1], cache)
    with pytest.raises(ValueError, match="other steps"), fewer.apply(model, "cache/key_norm 50%"), torch.no_grad():
        cached(model, x[:, :1], cache)
    used = DynamicCache(config=model.config)
    with torch.no_grad():
        cached(model, x, used)
    with pytest.raises(ValueError, match="begin with an empty cache"), fewer.apply(model, "cache/key_norm 50%"):
        cached(model, x[:, :1], used)
    with pytest.raises(ValueError, match="attention_mask is for 9 tokens"), fewer.apply(model, "cache/key_norm 50%"):
        model(x, attention_mask=torch.ones(1, 9))


def test_a_model_without_such_attention_is_named():
    with (
        pytest.raises(ValueError, match="Linear has no attention module"),
        fewer.apply(torch.nn.Linear(2, 2), "cache/random 50%"),
    ):
        pass


def test_every_step_reads_as_it_is_written():
    for text in (*WHOLE, "cache/key_norm 25% @ *.0.*", "attention/quest(block=32) 2048 @ decode"):
        assert str(recipe(text)[0]) == text


def test_recall_is_a_command(capsys, bundled_text=("--tokens", "300", "--count", "2", "--turns", "2")):
    from fewer.cli import main

    assert (
        main(["recall", "bundled", "--axes", "cache", "--methods", "key_norm", "--budgets", "100%", *bundled_text]) == 0
    )
    out = capsys.readouterr().out
    dense, *rest = [line.split()[1:] for line in out.splitlines() if line.startswith(("dense", "cache/"))]
    assert len(rest) == 2 and all(row[1] == dense[0] for row in rest), "a full budget answers as the model does"
    assert main(["recall", "bundled", "--axes", "weights"]) == 2


def test_what_is_remembered_of_a_block_is_of_its_keys_alone():
    """The boxes of Quest while rows of different lengths grow: the least and the greatest key of each block, by hand."""
    model = build("llama")
    x, mask = padded([ids()[0], ids(seed=1)[0, :17]])
    with fewer.apply(model, "attention/quest(rows=4, block=16) 32 @ decode") as applied:
        generate(model, x, attention_mask=mask, max_new_tokens=9)
    for m in applied.attending.made:
        k, _, at = m.store.read()
        for (row, head), length in zip(
            torch.cartesian_prod(torch.arange(2), torch.arange(2)).tolist(),
            m.store.length.flatten().tolist(),
            strict=True,
        ):
            assert (at[row, head] >= 0).sum() == length
            for i, block in enumerate(k[row, head, :length].split(16)):
                low, high = (d[row, head, i] for d in m.digests.held)
                assert torch.equal(low, block.amin(0)) and torch.equal(high, block.amax(0))
