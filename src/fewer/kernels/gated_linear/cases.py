"""The inputs on which gated_linear's backends must agree: one to eight tokens, crooked sizes, nothing kept, all kept, codes."""

from collections.abc import Iterator

import torch
from torch import Tensor

Case = tuple[Tensor, Tensor, Tensor | None, float, Tensor | None, Tensor | None]


def cases(dtype: torch.dtype, device: str) -> Iterator[Case]:
    make = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make).to(dtype).to(device)

    def apart(x: Tensor, cut: float) -> Tensor:
        """No input stands where rounding decides."""
        return torch.where((x.abs() - cut).abs() < 0.02, x * 1.5 + 0.1, x)

    for b, n_in, n_out, cut in (
        (1, 1, 1, 0.0),
        (1, 70, 33, 0.7),
        (2, 96, 130, 0.7),
        (3, 40, 300, 9.0),
        (5, 33, 16, 0.0),
        (8, 64, 64, 1.2),
    ):
        x, w = apart(normal(b, n_in), cut), normal(n_in, n_out).mT
        yield x, w, None, cut, None, None
        reach = torch.full((n_in,), 2.0, dtype=dtype, device=device)
        reach[::3] = 0.5
        yield torch.where((x.abs() * reach - cut).abs() < 0.05, 0.0, x), w, reach, cut, None, normal(n_out)
    x = apart(normal(2, 3, 40), 0.5)
    x[0, :, 7] = 0
    yield x, normal(40, 48).mT, None, 0.5, None, None
    codes = torch.randint(-127, 128, (50, 40), generator=make, dtype=torch.int8).to(device)
    yield apart(normal(3, 50), 0.5), codes.mT, None, 0.5, normal(40).abs() / 64, normal(40)
