"""NSA against its equations in loops, in float64, with gradients; and in a running model."""

import json
import os
import subprocess

import pytest
import torch
from test_attending import cached
from tiny import build
from transformers import DynamicCache

import fewer
from fewer.attention import Reading, Shape
from fewer.attention.nsa import Nsa
from fewer.core.budget import budget

HEADS, FEW, DIM, HIDDEN = 4, 2, 8, 12
SMALL = Nsa(length=4, stride=2, block=8, first=1, local=2, window=6, wide=5)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def asked(m, n, seed=0):
    """A reading of n tokens whose tensors ask for gradients; parts far from where they begin."""
    q, k, v = (draw(1, h, n, DIM, seed=seed + i).requires_grad_() for i, h in enumerate((HEADS, FEW, FEW)))
    x, parts = draw(1, n, HIDDEN, seed=seed + 3).requires_grad_(), {}
    for i, (name, t) in enumerate(m.begin(Shape(HEADS, FEW, DIM, HIDDEN), torch.Generator().manual_seed(seed)).items()):
        parts[name] = (t.double() + 0.3 * draw(*t.shape, seed=seed + 9 + i)).requires_grad_()
    r = Reading.of(q, k, v, parts)
    return Reading(q, k, v, r.at, r.now, r.scale, parts=parts, x=x)


def short(m, r, x, name, h):
    """Equation 7: each block and its places through an MLP, here beside its mean."""
    out = []
    for first in range(0, x.shape[2] - m.length + 1, m.stride):
        some = x[0, h, first : first + m.length]
        if m.mlp:
            flat = (some + r.parts[f"{name}_place"]).flatten()
            hidden = torch.nn.functional.gelu(r.parts[f"{name}_up"] @ flat)
            out.append(some.mean(0) + r.parts[f"{name}_down"] @ hidden)
        else:
            out.append(some.mean(0))
    return out


def blocks_read(m, p, t, count):
    """Equations 9 and 10, with their double sum; then the forced ones first, and the best."""
    own, sums = t // m.block, []
    for j in range(own + 1):
        at = [
            (m.block // m.stride) * j + m.block // m.stride - 1 - a - b
            for a in range(m.block // m.stride)
            for b in range(m.length // m.stride)
        ]
        sums.append(sum(p[i] for i in at if 0 <= i < len(p)))
    forced = [j for j in range(own + 1) if j < m.first or j > own - m.local]
    order = sorted(forced, key=lambda j: (j != own, j)) + sorted(
        set(range(own + 1)) - set(forced), key=lambda j: (-sums[j], j)
    )
    return set(order[: max(1, count)])


def truth(m, r, count):
    """One head and one token at a time."""
    n, group, rows = r.q.shape[2], HEADS // FEW, []
    shorts = [(short(m, r, r.k, "k", h), short(m, r, r.v, "v", h)) for h in range(FEW)]
    for t in range(n):
        gate = (r.parts["gate"] @ r.x[0, t] + r.parts["bias"]).sigmoid().view(3, HEADS)
        for kv in range(FEW):
            keys, values = shorts[kv]
            past = [i for i in range(len(keys)) if i * m.stride + m.length - 1 <= t]
            heads, weights = range(kv * group, kv * group + group), {}
            for h in heads:
                if past:
                    weights[h] = torch.stack([r.q[0, h, t] @ keys[i] * r.scale for i in past]).softmax(0)
            p = [sum(weights[h][i].item() for h in heads) for i in range(len(past))]
            read = blocks_read(m, p, t, count)
            for h in heads:
                out = (
                    sum((weights[h][i] * values[i] for i in range(len(past))), start=torch.zeros(DIM).double())
                    * gate[0, h]
                )
                for g, some in (
                    (1, [s for s in range(t + 1) if s // m.block in read]),
                    (2, list(range(max(0, t - m.window + 1), t + 1))),
                ):
                    w = (r.k[0, kv, some] @ r.q[0, h, t] * r.scale).softmax(0)
                    out = out + gate[g, h] * (w @ r.v[0, kv, some])
                rows.append(out)
    return torch.stack(rows).view(n, HEADS, DIM).transpose(0, 1)[None]


@pytest.mark.parametrize("m", [SMALL, Nsa(length=8, stride=8, block=8, window=5, mlp=False)])
def test_it_is_its_equations_and_their_gradient(m):
    r, count = asked(m, 45), 3
    out, true = m.mix(r, budget(str(count * m.block))), truth(m, r, count)
    assert torch.allclose(out, true, atol=1e-9)
    weight, leaves = draw(*out.shape, seed=77), [r.q, r.k, r.v, r.x, *r.parts.values()]
    ours, theirs = (torch.autograd.grad((o * weight).sum(), leaves) for o in (out, true))
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(ours, theirs, strict=True))


def test_all_blocks_selected_is_dense_attention():
    """The second branch alone, with everything read."""
    r = asked(SMALL, 30)
    parts = {
        **r.parts,
        "gate": r.parts["gate"] * 0,
        "bias": torch.tensor([-60.0, 60.0, -60.0]).double().repeat_interleave(HEADS),
    }
    out = SMALL.mix(Reading(r.q, r.k, r.v, r.at, r.now, r.scale, parts=parts, x=r.x), budget("100%"))
    dense = torch.nn.functional.scaled_dot_product_attention(r.q, r.k, r.v, is_causal=True, enable_gqa=True)
    assert torch.allclose(out, dense, atol=1e-9)


def test_it_reads_the_same_at_once_and_word_by_word_in_a_model():
    model, x = build("llama"), torch.randint(3, 99, (1, 30), generator=torch.Generator().manual_seed(0))
    step = "attention/nsa(length=4, stride=2, block=8, window=6, wide=4) 16"
    with torch.no_grad(), fewer.apply(model, step):
        whole = model(x, use_cache=False).logits
        cache = DynamicCache(config=model.config)
        parts = [cached(model, part, cache).logits for part in (x[:, :3], x[:, 3:24], *x[:, 24:].split(1, 1))]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)
    assert not hasattr(model.model.layers[0].self_attn, "mixer")


def test_sizes_that_do_not_fit_are_refused():
    model = build("llama")
    with (
        pytest.raises(ValueError, match="must be multiples of stride=16"),
        fewer.apply(model, "attention/nsa(length=24) 50%"),
    ):
        pass


PEER = os.environ.get("FEWER_PEER_FLA")
CODE = """
import json, sys, torch
from fla.ops.nsa.naive import naive_nsa_compression, naive_nsa_selection, naive_nsa_topk
given = json.load(open(sys.argv[1]))
q, k, v, kc, vc, g = (torch.tensor(given[n]).double() for n in ("q", "k", "v", "kc", "vc", "g"))
args = dict(block_size=given["block"], scale=given["scale"])
index = naive_nsa_topk(q, kc, given["count"], **args)
out = naive_nsa_selection(q, k, v, index, **args) * g[1][..., None]
out = out + naive_nsa_compression(q, kc, vc, **args)[0] * g[0][..., None]
json.dump(out.tolist(), open(sys.argv[2], "w"))
"""


@pytest.mark.skipif(PEER is None, reason="FEWER_PEER_FLA does not name a python with fla-core 0.6")
def test_flas_naive_form_gives_the_same(tmp_path):
    """`python -m venv fla && fla/bin/pip install fla-core==0.6.0 einops torch`; FEWER_PEER_FLA=fla/bin/python.

    fla's forms in float32, as it computes: means of whole blocks in short (the last, not whole, is forced), no window here.
    """
    m, n, count = Nsa(length=8, stride=8, block=8, first=1, local=2, window=1, mlp=False), 64, 4
    r = asked(m, n)
    parts = {"gate": r.parts["gate"], "bias": r.parts["bias"].clone()}
    parts["gate"].data[2 * HEADS :], parts["bias"][2 * HEADS :] = 0, -60.0  # no window
    out = m.mix(Reading(r.q, r.k, r.v, r.at, r.now, r.scale, parts=parts, x=r.x), budget(str(count * 8)))
    gate = (r.x @ parts["gate"].T + parts["bias"]).sigmoid().unflatten(-1, (3, HEADS))[:, :, :2].permute(2, 0, 1, 3)
    given = {name: t.transpose(1, 2).tolist() for name, t in (("q", r.q), ("k", r.k), ("v", r.v))}
    given |= {
        f"{name}c": x.unflatten(2, (-1, 8)).mean(3).transpose(1, 2).tolist() for name, x in (("k", r.k), ("v", r.v))
    }
    (tmp_path / "in.json").write_text(
        json.dumps({**given, "g": gate.tolist(), "block": 8, "scale": r.scale, "count": count})
    )
    subprocess.run(
        [PEER, "-W", "ignore", "-c", CODE, tmp_path / "in.json", tmp_path / "out.json"],
        check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    theirs = torch.tensor(json.loads((tmp_path / "out.json").read_text())).double().transpose(1, 2)
    assert torch.allclose(out, theirs, atol=1e-5)
