"""What selected attention must do beyond agreeing with its reference: equal loops in float64, equal SDPA when all is chosen."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from fewer.kernels import attend_chosen, load
from fewer.kernels.attend_chosen import ref
from fewer.kernels.attend_chosen.cases import cases


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
