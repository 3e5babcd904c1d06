"""The inputs on which best_pages' backends must agree: ties, pages that cannot be read, more wanted than there are."""

from collections.abc import Iterator
from typing import Any

import torch


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    make = torch.Generator().manual_seed(0)
    for batch, kv_heads, group, n, k in (
        (1, 1, 1, 1, 1),
        (2, 2, 4, 70, 9),
        (1, 3, 3, 300, 64),
        (1, 2, 16, 20, 20),
        (1, 1, 2, 9, 0),
    ):
        score = torch.randn(batch, kv_heads * group, n, generator=make).to(dtype)
        score = score.view(batch, kv_heads, group, n)
        score[:, :, :, 3::7] = score[:, :, :, :1]  # equals
        score[..., 1::5] = -torch.inf
        if batch > 1:
            score[-1, -1] = -torch.inf  # nothing to read
            score[0, 0, 1, 2] = -torch.inf  # for one head only
        table = torch.randperm(batch * kv_heads * n, generator=make).view(batch, kv_heads, n).int()
        yield score.flatten(1, 2).to(device), table.to(device), k
        end = torch.randint(0, n * 4 + 1, (batch, kv_heads), generator=make)
        yield score.flatten(1, 2).to(device), table.to(device), max(1, k), end.to(device), 4
