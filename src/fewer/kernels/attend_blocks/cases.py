"""The inputs on which attend_blocks' backends must agree: groups, crooked lengths, rows that read nothing, windows."""

from collections.abc import Iterator
from typing import Any

import torch

from fewer.layout import Blocks


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    make = torch.Generator().manual_seed(0)
    for batch, kv_heads, group, queries, keys, dim, out, block, wide, window, cap in (
        (1, 1, 1, 16, 16, 16, 16, (16, 16), 1, 0, 0.0),
        (2, 2, 2, 50, 70, 32, 32, (16, 32), 4, 0, 0.0),
        (1, 1, 4, 33, 33, 24, 40, (16, 16), 1, 20, 0.0),
        (2, 1, 3, 64, 130, 64, 64, (32, 64), 1, 0, 3.0),
        (1, 2, 1, 5, 90, 128, 128, (64, 64), 2, 40, 0.0),
    ):
        place = torch.arange(keys).expand(batch, kv_heads, -1).clone().int()
        if batch > 1:
            place[0, :, :3] = -1  # empty slots
        now = (torch.arange(queries) + keys - queries).expand(batch, -1).int()
        grid = batch, wide, -(-queries // block[0]), -(-keys // block[1])
        kinds = torch.ones(grid, dtype=torch.uint8)
        if not window:
            first = torch.arange(grid[2]) * block[0] + keys - queries
            past = (torch.arange(grid[3]) + 1) * block[1] - 1 <= first[:, None]  # every query may read the block whole
            kinds[:, :, past] = 2
            kinds[0, :, :, 0] = 1  # where the empty slots are
        keep = torch.rand(grid, generator=make) < 0.6
        keep[:, 0, 0] = False  # reads nothing
        blocks = Blocks.pack(kinds, keep, block, (queries, keys))
        q = torch.randn(batch, kv_heads * group, queries, dim, generator=make).to(dtype)
        k, v = (torch.randn(batch, kv_heads, keys, n, generator=make).to(dtype) for n in (dim, out))
        tensors = (t.to(device) for t in (q, k, v))
        yield *tensors, blocks.to(device), place.to(device), now.to(device), dim**-0.5, window, cap
