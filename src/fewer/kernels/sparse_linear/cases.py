"""The inputs on which sparse_linear's backends must agree: every layout, round and crooked, empty rows, nothing kept."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fewer.layout import Bitmask, Bsr, Csr, Dense, Gaps, Layout, Nm, Tiles

#        rows, cols, batch shape
SHAPES = ((1, 1, (1,)), (3, 129, (3,)), (16, 300, ()), (17, 64, (2, 2)), (48, 128, (17,)), (32, 132, (128,)))


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple]:
    make = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=make).to(dtype)

    for rows, cols, batch in SHAPES:
        x, bias = random(*batch, cols), random(rows)
        for w in weights(random(rows, cols), make):
            yield x.to(device), w.to(device), bias.to(device) if rows % 2 else None
    x, nothing = random(1, 40), random(8, 40)
    for empty in (Csr, Bitmask, Tiles, Gaps):
        yield x.to(device), empty.pack(nothing, torch.zeros_like(nothing, dtype=torch.bool)).to(device), None


def weights(w: Tensor, make: torch.Generator) -> Iterator[Layout]:
    """The weight in every layout that its shape allows, about a third kept, every third row empty where rows may be."""
    (rows, cols), keep = w.shape, torch.rand(w.shape, generator=make) < 0.3
    keep[::3] = False
    yield Csr.pack(w, keep)
    yield Bitmask.pack(w, keep)
    yield Dense.pack(w, keep)
    yield Gaps.pack(w, keep)
    for n, m in ((2, 4), (1, 4), (3, 8)):
        if cols % m == 0:
            rank = torch.rand(rows, cols // m, m, generator=make).argsort(-1).argsort(-1)
            yield Nm.pack(w, (rank < n).reshape(rows, cols), m=m)
    for height in (16, 8, 1):
        if rows % height == 0:
            yield Tiles.pack(w, blocks(rows, cols, height, 1, make), height=height)
    if rows % 16 == 0 and cols % 16 == 0:
        yield Bsr.pack(w, blocks(rows, cols, 16, 16, make), unit=(16, 16))


def blocks(rows: int, cols: int, h: int, w: int, make: torch.Generator) -> Tensor:
    """Units of h x w that stay or go together, the first row of units empty where there are several."""
    keep = torch.rand(rows // h, cols // w, generator=make) < 0.3
    keep[: len(keep) // 3] = False
    return keep.repeat_interleave(h, 0).repeat_interleave(w, 1)
