"""The inputs on which collect's backends must agree: atoms that nobody uses, that one row uses twice, and empty slots."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fewer.layout import Codes


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Codes, Tensor]]:
    make = torch.Generator().manual_seed(0)
    for rows, k, size, dim in ((1, 1, 1, 1), (3, 4, 7, 128), (40, 2, 5, 129), (2, 8, 600, 300), (0, 3, 4, 8)):
        index = torch.randint(size, (rows, k), generator=make)
        value = torch.randn(rows, k, generator=make).to(dtype)
        value[:, 1:] *= torch.rand(rows, k - 1, generator=make) < 0.7
        y = torch.randn(rows, dim, generator=make).to(dtype)
        yield Codes(index.to(device), value.to(device), size), y.to(device)
