"""The inputs on which correlate's backends must agree: one atom, repeated atoms, no row, crooked widths."""

from collections.abc import Iterator

import torch
from torch import Tensor


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    make = torch.Generator().manual_seed(0)
    for rows, k, size, dim in ((1, 1, 1, 1), (3, 4, 7, 128), (5, 2, 64, 129), (2, 8, 16, 300), (0, 3, 4, 8)):
        y, atoms = (torch.randn(n, dim, generator=make).to(dtype) for n in (rows, size))
        yield y.to(device), atoms.to(device), torch.randint(size, (rows, k), generator=make).to(device)
