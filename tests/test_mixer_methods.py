"""What mixers compute, against formulas written out in float64, word by word, and against a model that has the same."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import build
from torch.autograd import gradcheck

from fewer.attention import Mixer, Reading, Shape, _mixer, choose
from fewer.core import find, methods
from fewer.core.budget import budget
from fewer.core.spell import method_of
from fewer.kernels import top_k
from fewer.recipe.act import apply

ALL = budget("100%")
MIXERS = [name for name in methods("attention") if issubclass(find(name), Mixer)]
HEADS, FEW, DIM, N = 4, 2, 6, 11


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(m, heads=HEADS, few=FEW, n=N, batch=1, **fields):
    """A reading in float64 with the mixer's first parts, moved a little, so that none is zero."""
    q, k, v, x = (
        draw(batch, *s, seed=i) for i, s in enumerate([(heads, n, DIM), (few, n, DIM), (few, n, DIM), (n, 8)])
    )
    parts = m.begin(Shape(heads, few, DIM, 8), torch.Generator().manual_seed(0))
    parts = {name: t.double() + 0.1 * draw(*t.shape, seed=9) for name, t in parts.items()}
    r = replace(Reading.of(2 * q, k, v, parts), x=x, **fields)
    return replace(r, note=m.note(r))


def each(r, weights, first=0):
    """The sum of the values by `weights(scores, head, query)` of what lies at `first(query)` to the query, loop by loop."""
    out = torch.zeros(*r.q.shape[:3], r.v.shape[-1], dtype=torch.float64)
    group = r.q.shape[1] // r.k.shape[1]
    for b in range(len(r.q)):
        for h in range(r.q.shape[1]):
            for t in range(r.q.shape[2]):
                z = r.scale * r.k[b, h // group, : t + 1] @ r.q[b, h, t]
                out[b, h, t] = weights(z, h, t) @ r.v[b, h // group, : t + 1]
    return out


def entmax_of(z, alpha):
    """By bisection of the sum in tau, with nothing of ours."""
    z = (alpha - 1) * z
    low, high = z.max() - 1, z.max()
    for _ in range(200):
        tau = (low + high) / 2
        total = ((z - tau).clamp(min=0) ** (1 / (alpha - 1))).sum()
        low, high = (tau, high) if total > 1 else (low, tau)
    return (z - low).clamp(min=0) ** (1 / (alpha - 1))


FORMULAS = {
    "sparsemax": lambda z, h, t: entmax_of(z, 2.0),
    "entmax": lambda z, h, t: entmax_of(z, 1.5),
    "entmax(alpha=1.2)": lambda z, h, t: entmax_of(z, 1.2),
    "pladis(strength=1.7)": lambda z, h, t: z.softmax(0) + 1.7 * (entmax_of(z, 1.5) - z.softmax(0)),
    "pladis(strength=0.0)": lambda z, h, t: z.softmax(0),
    "combiner(span=1)": lambda z, h, t: z.softmax(0),
    "scatterbrain": lambda z, h, t: z.softmax(0),
}


@pytest.mark.parametrize("text", FORMULAS)
def test_a_mixer_is_its_formula(text):
    r = some(m := method_of(text, "attention"))
    assert torch.allclose(m.mix(r, ALL), each(r, FORMULAS[text]), atol=1e-7)


def test_each_head_has_its_alpha_and_sinks_take_part():
    m = method_of("adaptive_entmax", "attention")
    r = some(m, sinks=torch.tensor([0.5, -3.0, 1.0, 0.0], dtype=torch.float64))
    alpha = 1 + r.parts["alpha"].sigmoid()
    assert len(set(alpha.tolist())) == HEADS

    def weights(z, h, t):
        return entmax_of(torch.cat([z, r.sinks[h : h + 1]]), alpha[h].item())[:-1]

    assert torch.allclose(m.mix(r, ALL), each(r, weights), atol=1e-7)


def test_the_kernel_of_entmax_says_what_rows_say():
    """Where it is used (on a GPU), and what it gives; here it is its reference."""
    from fewer.attention._by_kernel import by_kernel, fits

    m = method_of("adaptive_entmax", "attention")
    r = some(m, window=6, cap=2.0)
    assert torch.allclose(by_kernel(r, 1 + r.parts["alpha"].sigmoid()), m.mix(r, ALL), atol=1e-9) and not fits(r)
    for text, alpha in (("entmax", 1.5), ("sparsemax", 2.0)):
        assert torch.allclose(by_kernel(r, alpha), method_of(text, "attention").mix(r, ALL), atol=1e-9)


def test_rectified_attention_is_its_formula_and_silent_where_no_key_is_above_zero():
    r = some(m := method_of("rela", "attention"))
    r.q[:, :, 4] = 0
    z = each(r, lambda z, h, t: z.clamp(min=0))
    true = torch.zeros_like(z)
    for t in range(N):
        rms = (z[0, :, t].square().mean() + 1e-8).sqrt()
        true[0, :, t] = r.parts["gain"] * z[0, :, t] / rms * (r.parts["gate"] * z[0, :, t]).sigmoid()
    assert torch.allclose(m.mix(r, ALL), true, atol=1e-10)
    assert not true[:, :, 4].any() and z[:, :, 0].isfinite().all()


@pytest.mark.parametrize("amount", ["3", "40%"])
def test_sigmoids_of_a_window_with_balanced_slopes(amount):
    r = some(m := method_of("sigmoid_window", "attention"))
    slope = [-0.5, -0.25, 0.5, 0.25]

    def weights(z, h, t):
        few = 3 if amount == "3" else max(1, (t + 1) * 2 // 5)
        return torch.tensor(
            [torch.sigmoid(s + slope[h] * (t - j)) if t - j < few else 0.0 for j, s in enumerate(z)]
        ).double()

    assert torch.allclose(m.mix(r, budget(amount)), each(r, weights), atol=1e-7)


def test_differential_attention_is_that_of_diffllama():
    """transformers' own module, with its weights, and ours around a plain Llama's."""
    from transformers import DiffLlamaConfig
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention

    config = DiffLlamaConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, attention_dropout=0.0
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    peer = DiffLlamaAttention(config, layer_idx=1).eval()
    heard = {}
    peer.o_proj.register_forward_pre_hook(lambda module, args: heard.update(out=args[0]))
    x = torch.randn(2, 9, 32)
    still = torch.ones(2, 9, 8), torch.zeros(2, 9, 8)
    mask = torch.full((9, 9), -1e30).triu(1)[None, None]
    with torch.no_grad():
        peer(x, position_embeddings=still, attention_mask=mask)
        q, k, v = (f(x).unflatten(-1, (-1, 8)).transpose(1, 2) for f in (peer.q_proj, peer.k_proj, peer.v_proj))
        parts = {name: getattr(peer, name).detach() for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")}
        r = replace(Reading.of(q, k, v, {**parts, "gain": torch.ones(16)}), layer=1)
        ours = method_of("differential", "attention").mix(r, ALL).transpose(1, 2).flatten(2)
    assert torch.allclose(ours, heard["out"], atol=1e-5)


def test_shared_differential_attention_is_that_of_two_models():
    """Two Llamas whose projections are changed for good; what they hear at their output projections, put together."""
    model, ids = build("llama", layers=1), torch.arange(3, 15)[None]
    module = model.model.layers[0].self_attn
    heard = []
    module.o_proj.register_forward_pre_hook(lambda _, args: heard.append(args[0].unflatten(-1, (4, 8))))
    q, k = module.q_proj.weight, module.k_proj.weight
    with torch.no_grad():
        with apply(model, "attention/shared_differential(rank=2) 100%"):
            parts = module.mixer
            for name in ("q_up", "k_up"):
                parts[name].normal_()
            parts = {name: t.detach().clone() for name, t in parts.items()}
            model(ids)
        for i in range(2):
            plain = q.clone(), k.clone()
            q += (parts["q_down"][i] @ parts["q_up"][i]).T
            k += (parts["k_down"][i] @ parts["k_up"][i]).T
            model(ids)
            q.copy_(plain[0])
            k.copy_(plain[1])
    ours, first, second = heard
    share = (parts["lambda_q1"] @ parts["lambda_k1"]).exp() - (parts["lambda_q2"] @ parts["lambda_k2"]).exp() + 0.2
    z = first - share * second
    true = 0.8 * z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert (first - second).abs().max() > 0.01 and torch.allclose(ours, true, atol=1e-4)


def test_regions_say_their_own_attention():
    span, m = 3, method_of("combiner(span=3)", "attention")
    r = some(m)
    true, least = torch.zeros(1, HEADS, N, DIM, dtype=torch.float64), 1.0
    for h in range(HEADS):
        q, k, v = r.q[0, h], r.k[0, h // 2], r.v[0, h // 2]
        for t in range(N):
            regions = [slice(a, a + span) for a in range(0, t // span * span, span)]
            near = slice(t // span * span, t + 1)
            z = torch.cat(
                [k[near] @ q[t], torch.stack([k[s].amax(0) @ q[t] for s in regions])] if regions else [k[near] @ q[t]]
            )
            p = (r.scale * z).softmax(0)
            size = near.stop - near.start
            true[0, h, t] = p[:size] @ v[near]
            for share, s in zip(p[size:], regions, strict=True):
                inner = (r.scale * k[s] @ q[s].amax(0)).softmax(0)
                true[0, h, t] += share * inner @ v[s]
                least = min(least, (share * inner).min().item())
    assert torch.allclose(m.mix(r, ALL), true, atol=1e-10) and least > 0


def test_random_features_are_right_in_the_mean():
    from fewer.attention.scatterbrain import directions, feature_logs

    x, y = 0.4 * draw(5, DIM), 0.4 * draw(5, DIM, seed=1)
    said = []
    for seed in range(144):
        w = directions(8, DIM, seed).double()
        said.append((feature_logs(x, w).exp() @ feature_logs(y, w).exp().mT) / 8)
    said, true = torch.stack(said), (x @ y.T).exp()
    assert ((said.mean(0) - true).abs() < 4.5 * said.std(0) / 12).all()


def test_scatterbrain_errs_less_than_either_half():
    """At every temperature than features alone, and than the support alone, on which it is exact."""
    m = method_of("scatterbrain(features=32)", "attention")
    rank, few = replace(m.of, rows=1, block=1), budget("25%")
    for heat in (0.5, 1.0, 2.0):
        r = some(m, n=60)
        r = replace(r, q=heat * r.q / 2)
        keep = r.grouped(choose(rank.score(r.q, rank.digest(r.k)), r.now[:, None], few, rank)) & r.may()

        def over(reads, r=r):
            return (r.scores().masked_fill(~reads, -torch.inf).softmax(-1) @ r.v[:, :, None]).flatten(1, 2)

        true = over(r.may())
        both, features, support = (
            (x - true).square().mean() for x in (m.mix(r, few), m.mix(r, budget("1")), over(keep))
        )
        assert both < min(features, support), heat


def test_an_estimator_learns_what_is_attended_to():
    """By its penalty alone, on other texts: values that are one dimension a token show what is read."""
    n, few, m = 16, budget("25%"), method_of("sea(width=16)", "attention")

    def text(seed):
        """Keys say a place in the text, queries look half way back."""
        half = (torch.arange(n) // 2)[:, None] - torch.arange(n // 2)
        k = torch.eye(n).expand(2, 1, n, n) + 0.1 * torch.randn(
            2, 1, n, n, generator=torch.Generator().manual_seed(seed)
        )
        q = torch.nn.functional.pad(30.0 * (half.abs() < 2), (0, n // 2)).expand(2, 1, n, n)
        return Reading.of(q, k, torch.eye(n).expand(2, 1, n, n), parts)

    def held(r):
        """The true attention's mass that is read, as a share of what the best choice would hold."""
        true = r.scores()[:, :, 0].masked_fill(~r.may()[:, :, 0], -torch.inf).softmax(-1)
        best = true * top_k(true, r.counts(few)[:, :, 0, :, 0].expand(true.shape[:-1]))
        with torch.no_grad():
            read = m.mix(replace(r, note=m.note(r)), few) > 0
        return ((true * read).sum() / best.sum()).item()

    parts = m.begin(Shape(1, 1, n, 1), torch.Generator().manual_seed(0))
    parts["share_bias"].fill_(1e4)  # nothing of the mean
    before = held(text(1))
    optimizer = torch.optim.Adam([t.requires_grad_() for t in parts.values()], lr=0.04)
    for step in range(25):
        optimizer.zero_grad()
        r = text(2 + step % 4)
        m.penalty(replace(r, note=m.note(r))).backward()
        optimizer.step()
    after = held(text(1))
    assert before < 0.5 and after > 0.7, (before, after)


def test_active_tokens_read_active_tokens():
    m = method_of("modular_activation", "attention")
    r = some(m)
    r.parts["bias"].zero_()
    r.parts["weight"].copy_(draw(8, seed=4))
    r = replace(r, note=m.note(r))
    sure = (r.x[0] @ r.parts["weight"] + r.parts["bias"]).sigmoid()
    active = sure > 0.5
    assert 2 < active.sum() < N - 2

    def weights(z, h, t):
        if not active[t]:
            return torch.zeros_like(z)
        reads = [j for j in range(t + 1) if active[j]][-3:]
        w = torch.zeros_like(z)
        w[reads] = z[reads].softmax(0)
        return sure[t] * w

    assert torch.allclose(m.mix(r, budget("3")), each(r, weights), atol=1e-10)


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_are_those_of_the_formula(name):
    """In float64, by differences; the same where chunks are made again on the way back."""
    m = find(name)()
    r = some(m, heads=2, few=2, n=5)
    names, tensors = zip(*r.parts.items(), strict=True) if r.parts else ((), ())
    leaves = [t.clone().requires_grad_() for t in (r.q, r.k, r.v, *tensors)]
    amount = budget("2") if m.chooses else ALL

    def out(q, k, v, *parts):
        here = replace(r, q=q, k=k, v=v, parts=dict(zip(names, parts, strict=True)))
        return m.mix(replace(here, note=m.note(here)), amount)

    assert gradcheck(out, leaves, fast_mode=True)


def test_chunks_of_queries_change_no_gradient(monkeypatch):
    for name in ("attention/adaptive_entmax", "attention/combiner"):
        m = find(name)()
        found = []
        for chunk in (256, 4):
            monkeypatch.setattr("fewer.attention._mixer.CHUNK", chunk)
            r = some(m)
            leaves = [t.requires_grad_() for t in (r.q, r.k, r.v, *r.parts.values())]
            m.mix(replace(r, note=m.note(r)), ALL).square().sum().backward()
            found.append([t.grad for t in leaves])
        assert all(torch.allclose(a, b) for a, b in zip(*found, strict=True)) and _mixer.CHUNK == 4


@pytest.mark.parametrize(
    "text, said, fields",
    [
        ("combiner(span=0)", "makes no regions", {}),
        ("combiner", "cannot follow a mask", {"mask": torch.ones(1, 1, N, N).bool()}),
        ("scatterbrain", "know no cap", {"cap": 30.0}),
        ("modular_activation", "decides by hidden states", {"x": None}),
    ],
)
def test_what_does_not_fit_is_refused(text, said, fields):
    m = method_of(text, "attention")
    with pytest.raises(ValueError, match=said):
        m.mix(replace(some(m), **fields), ALL)
    for shape in (Shape(4, 1, 8, 8), Shape(3, 3, 8, 8)):
        with pytest.raises(ValueError, match="even numbers"):
            find("attention/differential")().begin(shape, torch.Generator())
    assert math.isclose(find("attention/differential")().least(1), 0.8 - 0.6 * math.exp(-0.3))
