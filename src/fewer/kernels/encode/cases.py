"""The inputs on which encode's backends must agree: whole numbers, so that all round alike and ties are many."""

from collections.abc import Iterator

import torch
from torch import Tensor


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Tensor, Tensor, Tensor, int, bool]]:
    make = torch.Generator().manual_seed(0)

    def some(most: int, *shape: int) -> Tensor:
        return torch.randint(-most, most + 1, shape, generator=make).to(dtype).to(device)

    for rows, size, dim, k in (
        (1, 1, 1, 1),
        (3, 7, 5, 7),
        (5, 300, 17, 4),
        (2, 130, 32, 1),
        (3, 9000, 20, 3),  # more than is ranked at once
        (2, 8500, 8, 40),
        (0, 6, 4, 2),
    ):
        for by_size in (False, True):
            yield some(2, rows, dim), some(2, size, dim), some(9, size), k, by_size
    rare = some(0, 2, 9000)
    rare[:, 8992:] = 3  # all that is above the rest in the last, which is not full
    yield torch.eye(2, dtype=dtype, device=device), rare.mT.contiguous(), some(0, 9000), 9, False
