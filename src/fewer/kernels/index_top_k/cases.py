"""The inputs on which index_top_k's backends must agree: whole numbers, so that sums are exact and many are equal."""

from collections.abc import Iterator
from typing import Any

import torch


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    make = torch.Generator().manual_seed(0)

    def whole(most: int, *size: int) -> torch.Tensor:
        return torch.randint(-most, most + 1, size, generator=make).to(dtype)

    for batch, heads, queries, keys, dim, top in (
        (1, 1, 3, 5, 16, 2),
        (2, 4, 6, 70, 16, 9),
        (1, 3, 5, 200, 24, 64),
        (1, 2, 5, 150, 32, 150),
        (1, 8, 6, 300, 16, 1),
        (1, 2, 4, 10, 16, 0),
    ):
        at = torch.arange(keys).expand(batch, -1).clone().int()
        if batch > 1:
            at[0, :5] = -1  # padding
        now = (torch.arange(queries) + keys - queries).expand(batch, -1).clone().int()
        now[-1, 0] = -1  # may read nothing
        q, k, weight = whole(2, batch, heads, queries, dim), whole(2, batch, keys, dim), whole(3, batch, heads, queries)
        yield *(t.to(device) for t in (q, k, weight, at, now)), top
