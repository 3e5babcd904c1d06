"""The inputs on which feedback's backends must agree: one input, a crooked number of them, a leaf and more; N of M."""

from collections.abc import Iterator

import torch
from torch import Tensor


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, int, int]]:
    make = torch.Generator().manual_seed(0)
    sizes = ((1, 1, 1), (2, 3, 5), (7, 65, 7), (16, 130, 40), (32, 257, 64))
    for (k, outs, wide), (n, m) in ((s, p) for s in sizes for p in ((0, 0), (2, 4), (1, 2), (3, 8))):
        if m and k % m:
            continue
        ranks = torch.rand(k, outs, generator=make).argsort(0) + 1  # far apart: no rounding changes who is kept
        sign = torch.rand(k, outs, generator=make).round() * 2 - 1
        v = (ranks * sign).to(dtype)
        u = torch.rand(wide, wide, generator=make).triu(1) / 256 + torch.eye(wide)
        price = torch.ones(k)
        price[: k // 5] = 0
        keep = torch.rand(k, outs, generator=make) < 0.5
        each = (v, u.to(dtype)[:k, :k], price.to(dtype), keep)  # u is a view of a larger one
        v, u, price, keep = (t.to(device) for t in each)
        yield v, u, price, keep, n, m
