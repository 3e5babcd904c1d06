"""The inputs on which page_bounds' backends must agree: groups of 1 to 16, several queries, pages that are not named."""

from collections.abc import Iterator
from typing import Any

import torch


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    make = torch.Generator().manual_seed(0)
    for batch, kv_heads, group, queries, dim, reads in (
        (1, 1, 1, 1, 8, 3),
        (2, 2, 4, 1, 64, 70),
        (1, 2, 3, 2, 24, 130),
        (1, 1, 16, 1, 128, 64),
    ):
        pages = batch * kv_heads * reads
        ends = torch.randn(2, pages, dim, generator=make).to(dtype)
        table = torch.randperm(pages, generator=make).view(batch, kv_heads, reads).int()
        table[torch.rand(table.shape, generator=make) < 0.2] = -1
        q = torch.randn(batch, kv_heads * group, queries, dim, generator=make).to(dtype)
        yield tuple(t.to(device) for t in (q, ends.amin(0), ends.amax(0), table))
