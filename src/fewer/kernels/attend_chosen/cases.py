"""The inputs on which attend_chosen's backends must agree: groups of 1 to 16, keys one by one, short lists, short last blocks."""

from collections.abc import Iterator
from typing import Any

import torch


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    make = torch.Generator().manual_seed(0)
    for batch, kv_heads, group, queries, keys, dim, out, block, reads, window, cap in (
        (1, 1, 16, 5, 40, 16, 16, 16, 2, 0, 0.0),
        (2, 2, 2, 5, 70, 32, 16, 32, 2, 0, 0.0),
        (1, 2, 1, 9, 70, 24, 40, 16, 3, 30, 0.0),
        (1, 1, 4, 7, 50, 16, 16, 1, 20, 0, 3.0),
        (1, 1, 3, 7, 130, 64, 64, 64, 2, 0, 0.0),
        (1, 2, 8, 3, 5, 16, 16, 4, 1, 0, 0.0),
    ):
        place = torch.arange(keys).expand(batch, kv_heads, -1).clone().int()
        if batch > 1:
            place[0, :, :3] = -1  # empty slots
        now = (torch.arange(queries) + keys - queries).expand(batch, -1).int()
        blocks = -(-keys // block)
        order = torch.rand(batch, kv_heads, queries, blocks, generator=make)
        here = now[:, None, :, None] // block
        order[..., :blocks] += (torch.arange(blocks) == here) * 2.0  # the newest is chosen
        index = order.argsort(-1, descending=True)[..., :reads].int()
        index[torch.rand(index.shape, generator=make) < 0.15] = -1
        index[:, :, -1] = -1  # reads nothing
        q = torch.randn(batch, kv_heads * group, queries, dim, generator=make).to(dtype)
        k, v = (torch.randn(batch, kv_heads, keys, n, generator=make).to(dtype) for n in (dim, out))
        q, k, v, index, place, now = (t.to(device) for t in (q, k, v, index, place, now))
        yield q, k, v, index, block, place, now, dim**-0.5, window, cap
