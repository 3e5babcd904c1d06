"""Patterns that learn of a layer, and those that a model learns with."""

import math

import pytest
import torch
from tiny import build
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import fewer
from fewer.attention import Held
from fewer.attention._act import sparse
from fewer.attention.seer import Seer
from fewer.core.budget import budget
from fewer.core.spell import method_of
from fewer.recipe.steps import Step


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def words(rows=1, length=40, seed=0):
    return torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(seed))


def queries_and_keys(model, ids):
    """Of each layer of a Llama, rotated, by its own maps."""
    found, hooks = [], []

    def hear(module, args, given):
        x = given["hidden_states"]
        q, k = (p(x).unflatten(-1, (-1, module.head_dim)).transpose(1, 2) for p in (module.q_proj, module.k_proj))
        found.append(apply_rotary_pos_emb(q, k, *given["position_embeddings"]))

    for layer in model.model.layers:
        hooks.append(layer.self_attn.register_forward_pre_hook(hear, with_kwargs=True))
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("text", ["heavy_channels(width=3)", "pca_keys(width=3)", "product_codes(part=2)"])
def test_a_pattern_learns_of_each_layer_from_data_or_from_the_first_text(text):
    model, ids, m = build("llama"), words(2), method_of(f"attention/{text}")
    truth = [m.fit(q, k) for q, k in queries_and_keys(model, ids)]
    assert getattr(truth[0], m.fits) != getattr(truth[1], m.fits)
    told = {}
    with fewer.apply(model, f"attention/{text} 8 @ decode", data=ids) as applied:
        names = [w.name for w in applied.attending.ways.values()]
        told["data"] = [applied.attending.own.of(name, m) for name in names]
        model.generate(words(1, 30, seed=3), max_new_tokens=3)
        assert [applied.attending.own.of(name, m) for name in names] == told["data"], "it learns once"
    with fewer.apply(model, f"attention/{text} 8 @ decode") as applied, torch.no_grad():
        model.generate(ids, max_new_tokens=3)
        told["first"] = [applied.attending.own.of(name, m) for name in names]
        assert all(
            memory.digests.pattern is own for memory, own in zip(applied.attending.made, told["first"], strict=True)
        )
    for learnt in told.values():
        for own, true in zip(learnt, truth, strict=True):
            a, b = (torch.tensor(getattr(x, m.fits)) for x in (own, true))
            assert torch.allclose(a.double().abs(), b.double().abs(), atol=1e-3)


def test_padding_teaches_nothing():
    model, m = build("llama"), method_of("attention/heavy_channels(width=3)")
    rows = [words(1, 40), words(1, 25, seed=1)]
    ids = torch.cat([rows[0], torch.cat([torch.zeros(1, 15, dtype=torch.long), rows[1]], 1)])
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, :15] = 0
    alone = [queries_and_keys(model, row) for row in rows]
    with fewer.apply(model, "attention/heavy_channels(width=3) 8 @ decode") as applied, torch.no_grad():
        model.generate(ids, attention_mask=mask, max_new_tokens=2)
        for layer, ways in enumerate(applied.attending.ways.values()):
            q, k = (torch.cat([alone[0][layer][i], alone[1][layer][i]], 2) for i in (0, 1))
            assert applied.attending.own.of(ways.name, m).heavy == m.fit(q, k).heavy


def test_what_has_learnt_does_not_learn_again():
    model, m = build("llama"), method_of("attention/heavy_channels(width=1, heavy=((1,), (2,)))")
    with fewer.apply(model, Step(m, budget("8"), "decode"), data=words(2)) as applied:
        model.generate(words(), max_new_tokens=2)
        assert not applied.attending.learns
        assert all(applied.attending.own.of(w.name, m) is m for w in applied.attending.ways.values())


def test_moba_is_its_rule():
    """Every head and every token by itself, in loops; its gradient is that of attention over what it read."""
    size, blocks, n = 4, 3, 22
    q, k, v = (draw(1, h, n, 8, seed=s, dtype=torch.float64).requires_grad_() for h, s in ((4, 0), (2, 1), (2, 2)))
    m, at = method_of(f"attention/moba(block={size})"), torch.arange(n, dtype=torch.int32)
    out, _ = sparse(m, budget(str(size * blocks)), q, k, v, at.expand(1, 2, n), at[None], 8**-0.5)
    weight = draw(*out.shape, seed=3, dtype=torch.float64)
    grads = torch.autograd.grad((out * weight).sum(), (q, k, v))
    rows, said = [], (q[0] @ k[0].repeat_interleave(2, 0).mT).detach()
    for h in range(4):
        for t in range(n):
            own, mean = t // size, {}
            for b in range(own):
                mean[b] = said[h, t, b * size : (b + 1) * size].mean().item()
            read = {own, *sorted(mean, key=lambda b: -mean[b])[: blocks - 1]}
            some = [j for j in range(t + 1) if j // size in read]
            p = (k[0, h // 2, some] @ q[0, h, t] / math.sqrt(8)).softmax(0)
            rows.append(p @ v[0, h // 2, some])
    truth = torch.stack(rows).view(1, 4, n, 8)
    true = torch.autograd.grad((truth * weight).sum(), (q, k, v))
    assert torch.allclose(out, truth)
    assert all(torch.allclose(a, b) for a, b in zip(grads, true, strict=True))


def test_moba_does_not_see_the_future_and_leaves_layers_dense():
    model, x = build("llama"), words(1, 40)
    with fewer.apply(model, "attention/moba(block=8) 16 @ !*.1.*") as applied:
        assert [w.prefill is None for w in applied.attending.ways.values()] == [False, True]
        heard = model.model.embed_tokens(x).detach().requires_grad_()
        model(inputs_embeds=heard, use_cache=False).logits[0, 21].sum().backward()
    assert heard.grad[0, :22].norm(dim=1).min() > 0 and (heard.grad[0, 22:] == 0).all()
    with fewer.apply(model, "attention/moba(block=8) 40"), torch.no_grad():
        whole = model(x, use_cache=False).logits
    assert torch.allclose(whole, model(x).logits, atol=1e-4)


def test_a_gate_of_another_width_is_refused():
    m = Seer(parts=Held({"for_queries": draw(2, 4, 8), "for_keys": draw(2, 4, 8)}))
    with pytest.raises(ValueError, match="does not read blocks"):
        m.attend(draw(1, 2, 64, 8), draw(1, 2, 64, 8), budget("50%"))
