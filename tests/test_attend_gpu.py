"""Attention's Triton kernels where shapes are crooked: gradients against float64, groups that share tiles, pages of one token.

Without a GPU they run in Triton's interpreter, every address watched.
"""

import importlib
import os

import pytest
import torch
from slopes import compare

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before any @triton.jit is met

from fewer import kernels  # noqa: E402
from fewer.kernels.attend_blocks.cases import cases  # noqa: E402
from fewer.layout import Blocks  # noqa: E402

DEVICE = "cuda" if GPU else "cpu"
HALVES = [torch.float32, torch.bfloat16] if GPU else [torch.float16]  # the interpreter has no bf16, and takes its time
GROUPS = [(1, 1), (3, 2), (16, 2), (4, 8)] + [(2, 2), (4, 1), (6, 2), (8, 2), (12, 1)] * GPU


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("number", range(5))
def test_gradients_of_both_results_are_those_of_float64(number, dtype):
    compare("attend_blocks", list(cases(dtype, DEVICE))[number], dtype)


def test_columns_of_blocks_are_the_rows_of_the_transpose():
    from fewer.kernels.attend_blocks._columns import by_columns

    make = torch.Generator().manual_seed(0)
    kinds = torch.randint(1, 3, (2, 3, 5, 9), generator=make).byte()
    read = Blocks.pack(kinds, torch.rand(kinds.shape, generator=make) < 0.4, (16, 16))
    found = by_columns(read.to(DEVICE))
    for kind, count, index in ((1, *found[:2]), (2, *found[2:])):
        for place, column in (
            (p, read.dense()[p[0], p[1], :, p[2]]) for p in torch.cartesian_prod(*map(torch.arange, (2, 3, 9)))
        ):
            wanted = (column == kind).nonzero().flatten().tolist()
            assert count[tuple(place)] == len(wanted) and index[tuple(place)][: len(wanted)].tolist() == wanted


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("block, dim, lists", [((32, 16), 16, 4), ((16, 32), 32, 1), ((128, 64), 64, 2)])
def test_blocks_that_are_filled_are_copied_as_tiles(block, dim, lists, dtype):
    """No key is missing in the last block, no number in a head: another way through memory."""
    make = torch.Generator().manual_seed(dim)
    grid = 2, lists, 2, 3
    read = Blocks.pack(torch.randint(1, 3, grid, generator=make).byte(), torch.rand(grid, generator=make) < 0.7, block)
    queries, keys = read.lengths
    q, k, v = (torch.randn(2, h, n, dim, generator=make).to(dtype) for h, n in ((4, queries), (2, keys), (2, keys)))
    at = torch.arange(keys).expand(2, 2, -1).clone().int()
    at[0, 0, :5] = -1
    now = (torch.arange(queries) + keys - queries).clamp(min=0).expand(2, -1).int().contiguous()
    compare(
        "attend_blocks",
        (*(t.to(DEVICE) for t in (q, k, v)), read.to(DEVICE), at.to(DEVICE), now.to(DEVICE), dim**-0.5, 70),
        dtype,
    )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("group, lists", GROUPS)
def test_few_queries_to_a_block_share_a_tile_with_their_group(group, lists, dtype):
    """As selected attention trains: 16 queries and 64 keys to a block; one list for all, for a group, or for each head."""
    make = torch.Generator().manual_seed(group)
    kv_heads, queries, keys, dim = 2, 37, 150, 16
    kinds = torch.randint(1, 3, (1, lists, 3, 3), generator=make).byte()
    read = Blocks.pack(kinds, torch.rand(1, lists, 3, 3, generator=make) < 0.6, (16, 64), (queries, keys))
    q, k, v = (
        torch.randn(1, h, n, dim, generator=make).to(dtype)
        for h, n in ((kv_heads * group, queries), (kv_heads, keys), (kv_heads, keys))
    )
    at = torch.arange(keys).expand(1, kv_heads, -1).clone().int()
    now = (torch.arange(queries)[None] * 4).int()
    compare(
        "attend_blocks",
        (*(t.to(DEVICE) for t in (q, k, v)), read.to(DEVICE), at.to(DEVICE), now.to(DEVICE), dim**-0.5),
        dtype,
    )


def test_only_the_gpus_kernel_is_trusted_with_a_gradient(monkeypatch):
    used, args = [], next(iter(cases(torch.float32, "cpu")))
    here = importlib.import_module("fewer.kernels.attend_blocks")
    monkeypatch.setattr(here, "load", lambda op, backend: lambda *_: used.append(backend))
    wanted = args[0].clone().requires_grad_()
    here.attend_blocks(wanted, *args[1:])
    dispatch = "fewer.kernels._dispatch.backend_of"
    monkeypatch.setattr(dispatch, lambda *x: "ref" if any(t.requires_grad for t in x) else "gpu")
    here.attend_blocks(wanted, *args[1:])
    assert used == ["ref", "gpu"]


@pytest.mark.parametrize("page, reads", [(1, 700), (3, 100), (16, 40), (128, 5)])
def test_pages_of_any_size_are_split_and_merged(page, reads):
    """Enough of them that several programs share a head; some are named by -1, and empty slots hold NaN."""
    make = torch.Generator().manual_seed(page)
    pool = reads * 2 + 3
    k, v = (torch.randn(pool, page, n, generator=make) for n in (32, 48))
    at = torch.randint(-1, 900, (pool, page), generator=make).int()
    k[at < 0], v[at < 0] = torch.nan, torch.nan
    table = torch.stack([torch.randperm(pool, generator=make)[:reads] for _ in range(2)])[None].int()
    table[torch.rand(table.shape, generator=make) < 0.2] = -1
    q, now = torch.randn(1, 12, 3, 32, generator=make), torch.tensor([[5, 400, 899]], dtype=torch.int32)
    args = tuple(t.to(DEVICE) for t in (q, k, v, at, table, now))
    truth = kernels.load("attend_pages", "ref")(
        *(t.double().nan_to_num() if t.is_floating_point() else t for t in args), 0.2, 600
    )
    if GPU:
        found = kernels.load("attend_pages", "gpu")(*args, 0.2, 600)
    else:
        from fewer.testing.interpret import watch

        with watch(*args):
            found = kernels.load("attend_pages", "gpu")(*args, 0.2, 600)
    for mine, wanted in zip(found, truth, strict=True):
        assert torch.allclose(mine.double(), wanted, atol=2e-5)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_pages_are_read_in_a_captured_graph():
    from fewer.kernels.attend_pages.cases import cases as pages

    attend = kernels.load("attend_pages", "gpu")
    for args in pages(torch.bfloat16, DEVICE):
        plain = attend(*args)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            caught = attend(*args)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(plain, caught, strict=True))
