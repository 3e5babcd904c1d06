"""Patterns that learn of a layer, and those that a model learns with."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import build
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import fewer
from fewer.attention import Held, Reading
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
        assert not applied.attending.own.learns(applied.attending.ways.values())
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


def test_centres_are_those_of_spherical_k_means_and_move_slowly():
    """In loops; a cluster of its own is found; keys deepest in the query's cluster come first."""
    q, k = draw(1, 4, 20, 6), draw(1, 2, 20, 6, seed=1)
    m = method_of("attention/routing(clusters=3, turns=4, decay=0.9)").fit(q, k)
    for h in range(2):
        rows = []
        for t in range(20):
            rows += [x.double() / x.double().norm() for x in (k[0, h, t], q[0, 2 * h, t], q[0, 2 * h + 1, t])]
        mu = [rows[int((i + 0.5) / 3 * 60)] for i in range(3)]

        def turn(mu, decay, rows=rows):
            mine = [max(range(3), key=lambda c: float(x @ mu[c])) for x in rows]
            new = []
            for c in range(3):
                some = [x for x, at in zip(rows, mine, strict=True) if at == c]
                new.append(decay * mu[c] + (1 - decay) * torch.stack(some).mean(0) if some else mu[c])
            return [x / x.norm() for x in new]

        for _ in range(4):
            mu = turn(mu, 0.0)
        assert torch.allclose(torch.tensor(m.centres[h]).double(), torch.stack(mu), atol=1e-6)
        assert torch.allclose(torch.tensor(m.moved(q, k).centres[h]).double(), torch.stack(turn(mu, 0.9)), atol=1e-6)
        score = m.score(q, m.digest(k))
        for t in (0, 7, 19):
            for head in (2 * h, 2 * h + 1):
                centre = max(mu, key=lambda c: float(c @ q[0, head, t].double()))
                true = k[0, h].double() @ centre / k[0, h].double().norm(dim=-1)
                assert torch.allclose(score[0, head, t].double(), true, atol=1e-5)


def test_training_reads_a_random_part_that_is_near_and_inference_everything():
    model, x = build("llama"), words(1, 40)
    with fewer.apply(model, "attention/pathways(rows=4, block=4) 12") as applied:
        assert all(w.train and not w.prefill and not w.decode for w in applied.attending.ways.values())
        with torch.no_grad():
            assert torch.allclose(model(x, use_cache=False).logits, model(x).logits, atol=1e-4)
            model.train()
            first, second = (model(x, use_cache=False).logits for _ in range(2))
            model.eval()
        assert not torch.allclose(first, second, atol=1e-3), "each step draws anew"
    with fewer.apply(model, "attention/pathways(rows=4, block=4) 12"), torch.no_grad():
        model.train()
        assert torch.equal(model(x, use_cache=False).logits, first), "the same steps, the same draws"
        model.eval()
    m, n = method_of("attention/pathways(rows=1, block=1, reach=4.0)"), 33
    counts = (
        sum(m.anew(i).attend(draw(1, 1, n, 4), draw(1, 1, n, 4), budget("9"))[0, 0, -1].double() for i in range(400))
        / 400
    )
    near, far = counts[24:32].mean(), counts[:8].mean()
    assert near > 1.5 * far and far > 0.05 and counts[-1] == 1


def test_sparse_k_mixes_as_its_formula_by_projection():
    """m by bisection, one query at a time; the full budget is dense."""
    m, n, k = method_of("attention/sparse_k"), 13, 4
    q, keys, v, x = (draw(1, h, n, 8, seed=s, dtype=torch.float64) for h, s in ((4, 0), (2, 1), (2, 2), (1, 3)))
    parts = {"w": 2 * draw(2, 8, seed=4, dtype=torch.float64)}
    r = replace(Reading.of(q, keys, v, parts), x=x[:, 0])
    r = replace(r, note=m.note(r))
    out = m.mix(r, budget(str(k)))
    for h in range(4):
        for t in range(n):
            u = x[0, 0, : t + 1] @ parts["w"][h // 2]
            low, high = u.min() - 2, u.max()
            for _ in range(80):
                middle = (low + high) / 2
                low, high = (middle, high) if (u - middle).clamp(0, 1).sum() > k else (low, middle)
            gate = (u - high).clamp(0, 1) if t + 1 > k else torch.ones(t + 1, dtype=torch.float64)
            score = (keys[0, h // 2, : t + 1] @ q[0, h, t] / math.sqrt(8) * gate).masked_fill(gate < 1e-9, -torch.inf)
            assert torch.allclose(out[0, h, t], (score.softmax(0) * gate) @ v[0, h // 2, : t + 1], atol=1e-6)
    dense = torch.nn.functional.scaled_dot_product_attention(q, keys, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(m.mix(r, budget("100%")), dense)
