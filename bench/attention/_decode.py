"""One token reads 2048 of its keys: the bounds of pages, the best of them, attention over those; beside attention over all."""

from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.kernels import _device as device
from fewer.kernels import load
from fewer.kernels.attend_pages.gpu import Cut

TINY = not device.CUDA
DEVICE, DTYPE = ("cpu", torch.float16) if TINY else ("cuda", torch.bfloat16)
HEADS, KV_HEADS, DIM, BUDGET = (4, 2, 16, 32) if TINY else (32, 8, 128, 2048)
GROUP, SCALE = HEADS // KV_HEADS, DIM**-0.5


class Cache:
    """Keys and values of one layer in pages, with their boxes; each head's pages lie together, so they can be read densely too."""

    def __init__(self, length: int, batch: int, page: int, seed: int):
        make, n = torch.Generator(DEVICE).manual_seed(seed), length // page
        size = (batch * KV_HEADS * n, page, DIM)
        self.q = torch.randn(batch, HEADS, 1, DIM, generator=make, device=DEVICE, dtype=DTYPE)
        self.k, self.v = (torch.randn(*size, generator=make, device=DEVICE, dtype=DTYPE) for _ in range(2))
        self.low, self.high = self.k.amin(1), self.k.amax(1)
        self.table = torch.arange(size[0], dtype=torch.int32, device=DEVICE).view(batch, KV_HEADS, n)
        self.at = torch.arange(length, dtype=torch.int32, device=DEVICE).repeat(batch * KV_HEADS).view(-1, page)
        self.now = torch.full((batch, 1), length - 1, dtype=torch.int32, device=DEVICE)
        self.best = min(BUDGET // page, n)

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(t.view(*self.table.shape[:2], -1, DIM) for t in (self.k, self.v))  # type: ignore[return-value]


def attend(c: Cache, table: torch.Tensor, cut: Cut | None = None) -> torch.Tensor:
    return load("attend_pages", "gpu")(c.q, c.k, c.v, c.at, table, c.now, SCALE, cut=cut)[0]


def bounds(c: Cache) -> torch.Tensor:
    return load("page_bounds", "gpu")(c.q, c.low, c.high, c.table, SCALE)


def sparse(c: Cache) -> torch.Tensor:
    """All of it by our kernels."""
    return attend(c, load("best_pages", "gpu")(bounds(c), c.table, c.best))


def by_mask(c: Cache) -> torch.Tensor:
    """The choice by the mask of top_k."""
    mean = bounds(c).softmax(-1).unflatten(1, (KV_HEADS, -1)).mean(2).flatten(0, 1)
    index = load("places", "gpu")(load("top_k", "gpu")(mean, c.best), c.best)
    return attend(c, c.table.gather(-1, index.view(*c.table.shape[:2], -1)))


def by_torch(c: Cache) -> torch.Tensor:
    """Scores and choice by torch."""
    q = c.q.unflatten(1, (KV_HEADS, GROUP)).squeeze(3)
    low, high = (t.view(*c.table.shape, DIM).mT for t in (c.low, c.high))
    score = (q.clamp(min=0) @ high + q.clamp(max=0) @ low).float() * SCALE
    index = score.softmax(-1).mean(2).topk(c.best, sorted=False).indices
    return attend(c, c.table.gather(-1, index))


def sdpa(c: Cache, backend: SDPBackend) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.MATH if TINY else backend):
        return F.scaled_dot_product_attention(c.q, *c.dense(), enable_gqa=True)


def grouped(c: Cache) -> torch.Tensor:
    """Two matrix products for each key-value head."""
    q, (k, v) = c.q.view(-1, KV_HEADS, GROUP, DIM), c.dense()
    return torch.softmax((q @ k.mT).float() * SCALE, -1).to(DTYPE) @ v


def check(c: Cache) -> tuple[float, float]:
    """Relative errors against float64: over what was chosen, and over everything."""
    table = load("best_pages", "gpu")(bounds(c), c.table, c.best)
    least = load("best_pages", "ref")(load("page_bounds", "ref")(c.q.double(), c.low.double(), c.high.double(), c.table, SCALE), c.table, c.best)  # fmt: skip
    same = float((table == least).float().mean())
    off = [1 - same]
    for t in (table, c.table):
        truth = load("attend_pages", "ref")(c.q.double(), c.k, c.v, c.at, t, c.now, SCALE)[0]
        off.append(float((attend(c, t).double() - truth).norm() / truth.norm()))
    return tuple(off)  # type: ignore[return-value]


def decode(run: Any, length: int, batch: int, page: int) -> None:
    boxes = 2 * batch * KV_HEADS * (length // page) * DIM * 2
    read, everything = 2 * batch * KV_HEADS * min(BUDGET, length) * DIM * 2, 2 * batch * KV_HEADS * length * DIM * 2
    count = 1 if TINY else max(2, min(12, -(-device.bytes_to_rotate() // (boxes + read))))
    caches = [Cache(length, batch, page, seed) for seed in range(count)]
    off = check(caches[0])
    print(f"decode {length} {batch} {page}: other pages than in float64, errors: {off}; {count} copies", flush=True)
    tables = [load("best_pages", "gpu")(bounds(c), c.table, c.best) for c in caches]
    scores = [bounds(c) for c in caches]
    calls = {
        name: [partial(f, c) for c in caches] for name, f in dict(ours=sparse, mask=by_mask, torch=by_torch).items()
    }
    calls["only bounds"] = [partial(bounds, c) for c in caches]
    calls["only best"] = [partial(load("best_pages", "gpu"), s, c.table, c.best) for s, c in zip(scores, caches, strict=True)]  # fmt: skip
    calls["only attend"] = [partial(attend, c, t) for c, t in zip(caches, tables, strict=True)]
    size = {"only bounds": boxes, "only attend": read} | dict.fromkeys(("ours", "mask", "torch"), boxes + read)
    if page == 32:
        some = caches[:2]
        calls["dense ours"] = [partial(attend, c, c.table) for c in some]
        calls["dense cudnn"] = [partial(sdpa, c, SDPBackend.CUDNN_ATTENTION) for c in some]
        calls["dense flash"] = [partial(sdpa, c, SDPBackend.FLASH_ATTENTION) for c in some]
        calls["dense grouped"] = [partial(grouped, c) for c in some]
        size |= {name: everything for name in calls if name.startswith("dense")}
    what = dict(op="decode", length=length, batch=batch, page=page, other_pages=off[0], relative_error=off[1:])
    run.time(what, calls, size, 21, True)


# slots, warps, stages, programs a processor, warps of a merge
CUTS = [
    (64, 4, 1, 4, 1), (64, 4, 1), (64, 2, 1), (32, 1, 1, 8), (128, 4, 1), (128, 4, 2, 2), (128, 4, 2), (64, 4, 3), (32, 1, 3, 16),
]  # fmt: skip


def tune(run: Any, length: int) -> None:
    """Other cuts, for one token's selected pages, for eight tokens', and for everything."""
    for batch, everything in ((1, False), (8, False), (1, True)):
        caches = [Cache(length, batch, 32, seed) for seed in range(1 if TINY else 3 if batch > 1 or everything else 12)]
        tables = [c.table if everything else load("best_pages", "gpu")(bounds(c), c.table, c.best) for c in caches]
        calls = {f"{c}": [partial(attend, a, t, Cut(*c)) for a, t in zip(caches, tables, strict=True)] for c in CUTS}
        size = 2 * batch * KV_HEADS * (length if everything else BUDGET) * DIM * 2
        run.time(dict(op="tune pages", batch=batch, all=everything), calls, dict.fromkeys(calls, size), 9, True)
