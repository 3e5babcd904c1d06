"""The inputs on which top_k's backends must agree: crooked, full of ties, infinite, k from 0 to everything."""

from collections.abc import Iterator

import torch
from torch import Tensor


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Tensor, int | Tensor]]:
    make = torch.Generator().manual_seed(0)

    def some(*shape: int, levels: int = 0) -> Tensor:
        x = torch.randint(-levels, levels + 1, shape, generator=make) if levels else torch.randn(*shape, generator=make)
        return x.to(dtype)

    odd = some(3, 40)
    odd[0, ::3], odd[0, 1::3], odd[1, ::2], odd[1, 1::4], odd[2] = torch.inf, -torch.inf, -0.0, 0.0, torch.inf
    for score, k in (
        (some(1, 1), 1),
        (some(1, 1), 0),
        (some(5, 4), 2),
        (some(2, 3, 16), torch.tensor([[0, 1, 2], [15, 16, 9]])),
        (some(3, 129, levels=2), 64),
        (some(7, 33, levels=3), torch.tensor([0, 1, 7, 16, 32, 33, 5])),
        (torch.zeros(2, 70, dtype=dtype), 9),
        (odd, 20),
        (odd, torch.tensor([14, 30, 1])),
        (some(2, 300), 299),
        (some(3, 20, levels=2).mT, 2),
        (some(2, 17000, levels=500), torch.tensor([16000, 3])),
    ):
        yield score.to(device), k.to(device) if isinstance(k, Tensor) else k
