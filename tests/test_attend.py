"""What attention over pages and over blocks must do beyond agreeing with its reference: merge, ignore order, equal SDPA."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from fewer.kernels import load
from fewer.layout import Blocks

BACKENDS = ["ref", "cpu"]


def cached(length=100, page=8, kv_heads=2, group=4, dim=32):
    """Queries [1, heads, 1, dim] and a cache, dense and as pages of which the last is short."""
    torch.manual_seed(0)
    q = torch.randn(1, kv_heads * group, 1, dim)
    k, v = torch.randn(2, 1, kv_heads, length, dim).unbind()
    short = -length % page
    pages = [torch.nn.functional.pad(t, (0, 0, 0, short)).reshape(-1, page, dim) for t in (k, v)]
    at = torch.nn.functional.pad(torch.arange(length), (0, short), value=-1).repeat(kv_heads).view(-1, page).int()
    table = torch.arange(len(at)).view(1, kv_heads, -1).int()
    return q, k, v, (*pages, at), table, torch.tensor([[length]], dtype=torch.int32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_pages_in_any_order_are_sdpa(backend):
    q, k, v, pool, table, now = cached()
    truth = sdpa(q.double(), k.double(), v.double(), enable_gqa=True)
    for order in (torch.arange(table.shape[-1]), torch.randperm(table.shape[-1])):
        out, lse = load("attend_pages", backend)(q, *pool, table[..., order], now, 32**-0.5)
        assert torch.allclose(out.double(), truth, atol=1e-5)
        score = q.view(1, 2, 4, 32).double() @ k.double().mT * 32**-0.5
        assert torch.allclose(lse.double(), score.logsumexp(-1).view(1, 8, 1), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_halves_merge_by_their_logarithms(backend):
    q, _, _, pool, table, now = cached()
    attend = load("attend_pages", backend)
    whole, lse = attend(q, *pool, table, now, 0.2)
    (a, at_a), (b, at_b) = (attend(q, *pool, t.contiguous(), now, 0.2) for t in (table[..., :5], table[..., 5:]))
    both = torch.logaddexp(at_a, at_b)
    merged = a * (at_a - both).exp()[..., None] + b * (at_b - both).exp()[..., None]
    assert torch.allclose(both, lse, atol=1e-5) and torch.allclose(merged, whole, atol=1e-5)


def test_threads_share_the_lists_and_change_nothing():
    q, _, _, pool, table, now = cached(length=700, kv_heads=1)
    before, out = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out.append(load("attend_pages", "cpu")(q, *pool, table, now, 0.2)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(*out, atol=1e-5)


def test_stored_small_numbers_are_multiplied_in_float32():
    q, _, _, (k, v, at), table, now = cached()
    for kind in (torch.bfloat16, torch.float16):
        small = k.to(kind), v.to(kind)
        truth = load("attend_pages", "ref")(q.double(), *(t.double() for t in small), at, table, now, 0.2)[0]
        assert torch.allclose(load("attend_pages", "cpu")(q, *small, at, table, now, 0.2)[0].double(), truth, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries, keys, block", [(200, 200, (64, 64)), (150, 333, (32, 16)), (300, 300, (256, 64))])
def test_causal_blocks_are_sdpa(backend, queries, keys, block):
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, queries, 40), torch.randn(1, 2, keys, 40), torch.randn(1, 2, keys, 24)
    now, place = torch.arange(queries) + keys - queries, torch.arange(keys)
    causal = now[:, None] >= place
    read = Blocks.of_tokens(causal[None, None], block)
    places = place.int().expand(1, 2, -1).contiguous()
    out, _ = load("attend_blocks", backend)(q, k, v, read, places, now.int()[None], 40**-0.5)
    truth = sdpa(q.double(), k.double(), v.double(), attn_mask=causal, enable_gqa=True)
    assert torch.allclose(out.double(), truth, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_key_of_a_page_exceeds_its_bound(backend):
    torch.manual_seed(0)
    q, pages = torch.randn(1, 8, 2, 48), torch.randn(1, 2, 50, 16, 48)
    low, high = (t.reshape(-1, 48) for t in (pages.amin(3), pages.amax(3)))
    table = torch.arange(100).view(1, 2, 50).int()
    bound = load("page_bounds", backend)(q, low, high, table, 1.0)
    score = q.view(1, 2, 4, 2, 48) @ pages.flatten(2, 3)[:, :, None].mT
    best = score.view(1, 8, 2, 50, 16).amax((2, 4))
    corners = torch.maximum(
        q[..., None, :] * pages.amin(3).repeat_interleave(4, 1)[:, :, None],
        q[..., None, :] * pages.amax(3).repeat_interleave(4, 1)[:, :, None],
    )
    assert (bound >= best - 1e-4).all() and torch.allclose(bound, corners.sum(-1).amax(2), atol=1e-4)


def test_a_new_process_finds_the_loops_compiled_and_is_left_its_one_thread():
    words = """import torch; from fewer.kernels import attend_blocks, attend_pages; from fewer.layout import Blocks
x, i, n = torch.ones(1, 1, 16, 16), torch.arange(16).int(), torch.tensor([[16]]).int()
a = attend_pages(x[:, :, :1], x[0], x[0], i[None], n[None] * 0, n, 1.0)[0]
b = attend_blocks(x, x, x, Blocks.of_tokens(torch.ones(1, 1, 16, 16) > 0, (16, 16)), i[None, None], i[None], 1.0)[0]
print(round(a.sum().item()), round(b.sum().item()), torch.get_num_threads())"""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop("NUMBA_NUM_THREADS", None)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=env)
        assert (done.returncode, done.stdout.strip()) == (0, "16 256 1"), done.stderr[-500:]
