"""The inputs on which append_slots' backends must agree: empty heads, full pages, heads of different lengths, pools of another dtype."""

from collections.abc import Iterator

import torch
from torch import Tensor


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Tensor, ...]]:
    make = torch.Generator().manual_seed(0)
    for batch, heads, dim, out, page, reads in ((1, 1, 8, 8, 4, 1), (2, 3, 24, 16, 16, 3), (3, 2, 64, 64, 1, 5)):
        pages = batch * heads * reads + 2
        pools = torch.randn(pages, page, dim, generator=make), torch.randn(pages, page, out, generator=make)
        places = torch.randint(-1, 9, (pages, page), generator=make).int()
        table = torch.randperm(pages, generator=make)[: batch * heads * reads].view(batch, heads, reads).int()
        end = torch.randint(0, reads * page, (batch, heads), generator=make)
        k, v = (torch.randn(batch, 1, heads, n, generator=make).transpose(1, 2) for n in (dim, out))
        at = torch.randint(50, 60, (batch, 1), generator=make).int()
        new = (k.to(dtype), v.to(dtype), at, *(p.to(dtype) for p in pools), places, table, end)
        yield tuple(t.to(device) for t in new)
