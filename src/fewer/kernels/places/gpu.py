"""places with Triton: a program goes along a row and remembers how many it has found."""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Int64
from torch import Tensor


@triton.jit
def _places(keep, out, n, k, BLOCK: tl.constexpr, ROOM: tl.constexpr):
    row, here = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    found = 0
    for first in range(0, n, BLOCK):
        col = first + here
        kept = tl.load(keep + row * n + col, mask=col < n, other=0).to(tl.int32)
        place = found + tl.cumsum(kept, 0) - 1
        tl.store(out + row * k + place, col.to(tl.int64), mask=(kept > 0) & (place < k))
        found += tl.sum(kept, 0)
    slot = tl.arange(0, ROOM)
    for first in range(0, k, ROOM):
        empty = (first + slot >= found) & (first + slot < k)
        tl.store(out + row * k + first + slot, tl.full([ROOM], -1, tl.int64), mask=empty)


def places(keep: Bool[Tensor, "rows n"], k: int | None) -> Int64[Tensor, "rows k"]:
    """Without `k` the device is waited for: how much room there must be is known only then."""
    rows, n = keep.shape
    most = k if k is not None else int(keep.sum(1).max()) if rows else 0
    out = torch.empty(rows, most, dtype=torch.int64, device=keep.device)
    if rows and most:
        block = min(4096, triton.next_power_of_2(max(n, 1)))
        _places[(rows,)](keep.contiguous().view(torch.uint8), out, n, most, BLOCK=block, ROOM=128)
    return out
