"""The inputs on which places' backends must agree: none kept, all kept, more than there is room for, crooked widths."""

from collections.abc import Iterator

import torch
from torch import Tensor


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Tensor, int | None]]:
    make = torch.Generator().manual_seed(0)
    for rows, n, k, share in (
        (1, 1, 1, 1.0),
        (3, 64, 5, 0.1),
        (4, 37, 37, 0.5),
        (2, 200, 8, 0.5),
        (3, 16, 2, 0.0),
        (2, 5, 9, 0.6),
        (5, 72, None, 0.2),
        (4, 35, None, 0.3),
    ):
        yield (torch.rand(rows, n, generator=make) < share).to(device), k
