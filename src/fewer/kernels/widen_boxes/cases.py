"""The inputs on which widen_boxes' backends must agree: the first key of a page, a later one, heads of different lengths."""

from collections.abc import Iterator
from typing import Any

import torch


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Any, ...]]:
    make = torch.Generator().manual_seed(0)
    for batch, heads, n, dim, size in ((1, 1, 1, 8, 4), (2, 3, 5, 24, 16), (2, 2, 3, 64, 1)):
        a, b = torch.randn(2, batch, heads, n, dim, generator=make)
        k = torch.randn(batch, 1, heads, dim, generator=make).transpose(1, 2)
        end = torch.randint(1, n * size + 1, (batch, heads), generator=make)
        yield *(t.to(dtype).to(device) for t in (a.minimum(b), a.maximum(b), k)), end.to(device), size
