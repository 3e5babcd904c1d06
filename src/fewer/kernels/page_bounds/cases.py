"""The inputs on which page_bounds' backends must agree: groups of 1 to 16, several queries, tables with holes."""

from collections.abc import Iterator
from typing import Any

import torch


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    make = torch.Generator().manual_seed(0)
    for batch, kv_heads, group, queries, dim, n in (
        (1, 1, 1, 1, 8, 1), (2, 2, 4, 1, 64, 70), (1, 3, 3, 5, 24, 33), (1, 2, 16, 2, 128, 20), (1, 8, 4, 1, 128, 129)
    ):  # fmt: skip
        pool = batch * kv_heads * n
        corners = torch.randn(2, pool, dim, generator=make).to(dtype)
        table = torch.randperm(pool, generator=make).view(batch, kv_heads, n).int()
        table[torch.rand(table.shape, generator=make) < 0.2] = -1
        q = torch.randn(batch, kv_heads * group, queries, dim, generator=make).to(dtype)
        yield *(t.to(device) for t in (q, corners.amin(0), corners.amax(0), table)), dim**-0.5
