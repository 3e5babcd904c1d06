"""The inputs on which adam's backends must agree: the first step and a later one, free rows and rows of length 1."""

from collections.abc import Iterator

import torch

from fewer.kernels.collect.cases import cases as uses

from . import Move


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[object, ...]]:
    make = torch.Generator().manual_seed(1)
    for number, (codes, y) in enumerate(uses(dtype, device), 1):
        for unit in (False, True):
            w, m, v = (torch.randn(codes.size, y.shape[1], generator=make) for _ in range(3))
            w = torch.nn.functional.normalize(w, dim=1) if unit else w
            state = ((t.to(dtype).to(device)) for t in (w, m, v.square() + 0.1))
            yield *state, codes, y, Move(0.01, number, unit=unit)
    w, m, v, g = (torch.randn(33, 5, generator=make).to(dtype).to(device) for _ in range(4))
    yield w, m, v.square() + 0.1, None, g, Move(0.01, 2)  # the gradient itself
    yield torch.nn.functional.normalize(w, dim=1), m, v.square() + 0.1, None, g, Move(0.01, 2, unit=True)
