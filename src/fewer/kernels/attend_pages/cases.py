"""The inputs on which attend_pages' backends must agree: groups of 1 to 16, short last pages, nothing to read, windows."""

from collections.abc import Iterator
from typing import Any

import torch


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    make = torch.Generator().manual_seed(0)
    for batch, kv_heads, group, queries, dim, out, page, count, window, cap, stored in (
        (1, 1, 1, 1, 8, 8, 1, 3, 0, 0.0, dtype),
        (2, 2, 4, 1, 64, 64, 16, 5, 0, 0.0, dtype),
        (1, 2, 1, 3, 32, 16, 8, 4, 9, 0.0, dtype),
        (2, 1, 16, 2, 128, 128, 16, 7, 0, 5.0, dtype),
        (1, 3, 8, 1, 24, 40, 4, 9, 5, 2.0, torch.bfloat16 if dtype == torch.float32 and device == "cpu" else dtype),
        (3, 2, 2, 1, 64, 64, 64, 2, 0, 0.0, dtype),
    ):
        pages = batch * kv_heads * count
        k, v = (torch.randn(pages, page, n, generator=make).to(stored) for n in (dim, out))
        length = torch.randint(1, count * page + 1, (batch, kv_heads), generator=make)  # slots that are filled
        place = torch.arange(count * page).expand(batch, kv_heads, -1) * 2  # every other token was forgotten
        at = torch.where(place < 2 * length[..., None], place, -1).reshape(pages, page).int()
        order = torch.rand(batch, kv_heads, count, generator=make).argsort(-1)
        table = (torch.arange(pages).view(batch, kv_heads, count).gather(-1, order)).int()
        table[torch.rand(table.shape, generator=make) < 0.2] = -1
        if batch > 1:
            table[-1] = -1  # nothing to read
        now = torch.randint(0, 2 * count * page, (batch, queries), generator=make).int().sort(-1).values
        q = torch.randn(batch, kv_heads * group, queries, dim, generator=make).to(dtype)
        tensors = (t.to(device) for t in (q, k, v, at, table, now))
        yield *tensors, dim**-0.5, window, cap
