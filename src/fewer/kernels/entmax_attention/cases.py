"""The inputs on which entmax_attention's backends must agree: alphas of all and of each head, windows, who reads nothing."""

from collections.abc import Iterator
from typing import Any

import torch


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    make = torch.Generator().manual_seed(0)
    for batch, kv_heads, group, queries, keys, dim, out, alpha, window, cap in (
        (1, 1, 1, 16, 16, 16, 16, 1.5, 0, 0.0),
        (2, 1, 2, 35, 40, 32, 16, 2.0, 0, 0.0),
        (1, 1, 3, 20, 40, 24, 40, (1.5, 1.2, 1.9), 9, 0.0),
        (1, 2, 1, 3, 70, 64, 64, 1.5, 0, 3.0),
    ):
        place = torch.arange(keys).expand(batch, kv_heads, -1).clone().int()
        if batch > 1:
            place[0, :, :3] = -1  # empty slots
        now = (torch.arange(queries) + keys - queries).expand(batch, -1).clone().int()
        now[-1, 0] = -1  # reads nothing
        q = torch.randn(batch, kv_heads * group, queries, dim, generator=make).to(dtype) * 2
        k, v = (torch.randn(batch, kv_heads, keys, n, generator=make).to(dtype) for n in (dim, out))
        each = torch.tensor(alpha, device=device) if isinstance(alpha, tuple) else alpha
        tensors = (t.to(device) for t in (q, k, v))
        yield *tensors, each, place.to(device), now.to(device), dim**-0.5, window, cap
