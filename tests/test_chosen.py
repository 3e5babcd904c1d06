"""What trained attention must do beyond agreeing with its references: equal loops in float64, equal SDPA when all is chosen."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from fewer.kernels import attend_chosen, entmax_attention, index_top_k, load
from fewer.kernels.attend_chosen import ref
from fewer.kernels.attend_chosen.cases import cases
from fewer.kernels.entmax_attention.cases import cases as entmax_cases
from fewer.kernels.index_top_k.cases import cases as index_cases


def one_query(q, k, v, chosen, block, place, now, scale, window, cap):
    """By loops over numbers: the output, and the logarithm of the denominator."""
    score, value = [], []
    for b in chosen.tolist():
        for j in range(b * block, min((b + 1) * block, len(k))) if b >= 0 else ():
            if 0 <= place[j] <= now and (not window or place[j] > now - window):
                s = scale * sum(a * c for a, c in zip(q.tolist(), k[j].tolist(), strict=True))
                score.append(cap * math.tanh(s / cap) if cap else s)
                value.append(v[j])
    total = sum(math.exp(s) for s in score)
    out = sum((math.exp(s) / total * x for s, x in zip(score, value, strict=True)), torch.zeros_like(v[0]))
    return out, math.log(total) if total else -math.inf


@pytest.mark.parametrize("number", range(6))
def test_each_query_is_what_loops_say(number):
    q, k, v, index, block, place, now, *rest = list(cases(torch.float64, "cpu"))[number]
    out, lse = attend_chosen(q, k, v, index, block, place, now, *rest)
    group = q.shape[1] // k.shape[1]
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        if (b + h + i) % 3 == 0:
            mine = q[b, h, i], k[b, h // group], v[b, h // group], index[b, h // group, i], block
            wanted, level = one_query(*mine, place[b, h // group].tolist(), int(now[b, i]), *rest)
            assert torch.allclose(out[b, h, i], wanted, atol=1e-12) and math.isclose(lse[b, h, i], level, abs_tol=1e-12)


@pytest.mark.parametrize("block", [1, 8])
def test_all_blocks_chosen_is_sdpa_with_its_gradients(block):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, 20, 8, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    place = torch.arange(20).int()
    blocks = -(-20 // block)
    index = torch.stack([torch.randperm(blocks) for _ in range(40)]).view(1, 2, 20, blocks).int()
    out, _ = attend_chosen(q, k, v, index, block, place.expand(1, 2, -1), place[None], 8**-0.5)
    truth = sdpa(q, k, v, is_causal=True, enable_gqa=True)
    assert torch.allclose(out, truth, atol=1e-12)
    weight = torch.randn_like(out)
    pairs = zip(*(torch.autograd.grad((o * weight).sum(), (q, k, v)) for o in (out, truth)), strict=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


def test_some_queries_at_a_time_change_nothing(monkeypatch):
    args = list(cases(torch.float64, "cpu"))[2]
    leaves = [t.requires_grad_() for t in args[:3]]
    whole = load("attend_chosen", "ref")(*args)
    slope = torch.autograd.grad(whole[0].square().sum(), leaves)
    monkeypatch.setattr(ref, "ROOM", 1)
    parts = load("attend_chosen", "ref")(*args)
    again = torch.autograd.grad(parts[0].square().sum(), leaves)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip((*whole, *slope), (*parts, *again), strict=True))


@pytest.mark.parametrize("number", range(6))
def test_the_indexer_chooses_what_loops_choose(number):
    q, k, weight, at, now, top = list(index_cases(torch.float64, "cpu"))[number]
    chosen = index_top_k(q, k, weight, at, now, top)
    assert chosen.shape == (*now.shape, top) and chosen.dtype == torch.int32
    for b, i in torch.cartesian_prod(*map(torch.arange, now.shape)).tolist():
        score = {}
        for j in range(k.shape[1]):
            if 0 <= at[b, j] <= now[b, i]:
                heads = (float(weight[b, h, i]) * max(float(q[b, h, i] @ k[b, j]), 0) for h in range(q.shape[1]))
                score[j] = sum(heads)
        best = sorted(sorted(score, key=lambda j: -score[j])[:top])
        assert chosen[b, i].tolist() == best + [-1] * (top - len(best))


def entmax_of(score, alpha):
    """By bisection over plain numbers."""
    z = [(alpha - 1) * s for s in score]
    low, high = max(z) - 1, max(z)
    for _ in range(80):
        tau = (low + high) / 2
        heavy = sum(max(x - tau, 0) ** (1 / (alpha - 1)) for x in z) >= 1
        low, high = (tau, high) if heavy else (low, tau)
    return [max(x - low, 0) ** (1 / (alpha - 1)) for x in z]


@pytest.mark.parametrize("number", range(4))
def test_entmax_attention_is_what_loops_say(number):
    q, k, v, alpha, at, now, scale, window, cap = list(entmax_cases(torch.float64, "cpu"))[number]
    out, group = entmax_attention(q, k, v, alpha, at, now, scale, window, cap), q.shape[1] // k.shape[1]
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        place, last, score = at[b, h // group], int(now[b, i]), (k[b, h // group] @ q[b, h, i] * scale)
        score = cap * torch.tanh(score / cap) if cap else score
        able = ((place >= 0) & (place <= last) & ((place > last - window) | (window == 0))).nonzero().flatten()
        if not len(able):
            assert not out[b, h, i].any()
            continue
        p = entmax_of(score[able].tolist(), float(alpha[h]) if isinstance(alpha, torch.Tensor) else alpha)
        wanted = torch.tensor(p, dtype=torch.float64) @ v[b, h // group, able]
        assert torch.allclose(out[b, h, i], wanted, atol=1e-9)


def test_entmax_attention_has_the_gradients_of_its_formula():
    make = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, h, n, 3, dtype=torch.float64, generator=make) for h, n in ((2, 4), (1, 6), (1, 6)))
    leaves = [t.requires_grad_() for t in (q, k, v, torch.tensor([1.4, 1.8], dtype=torch.float64))]
    at, now = torch.arange(6).int().expand(1, 1, -1), torch.tensor([[-1, 3, 4, 5]]).int()
    assert torch.autograd.gradcheck(lambda *x: entmax_attention(*x, at, now, 2.0), leaves)
    with pytest.raises(ValueError, match="alpha above 1, not 1"):
        entmax_attention(q, k, v, 1.0, at, now, 1.0)
