"""The inputs on which prefixes' backends must agree: one atom, repeated atoms, empty slots, crooked widths, no row."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fewer.layout import Codes


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Codes, Tensor, Tensor, Tensor]]:
    make = torch.Generator().manual_seed(0)
    for rows, k, size, dim in ((1, 1, 1, 1), (3, 4, 7, 128), (5, 3, 64, 129), (2, 9, 16, 300), (0, 3, 4, 8)):
        index = torch.randint(size, (rows, k), generator=make)
        value = torch.randn(rows, k, generator=make).to(dtype)
        value[:, 1:] *= torch.rand(rows, k - 1, generator=make) < 0.7
        atoms, y = (torch.randn(n, dim, generator=make).to(dtype) for n in (size, rows))
        weight = torch.rand(k, generator=make).to(dtype)
        yield Codes(index.to(device), value.to(device), size), atoms.to(device), y.to(device), weight.to(device)
