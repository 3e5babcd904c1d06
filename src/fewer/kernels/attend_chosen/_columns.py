"""Who chose each block: the lists of all queries turned round, by a stable sort, without a word from the host."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chosen:
    """`order[start[b] : start[b + 1]]` are the choices that name block b (of all units), in order of query.

    A choice is a place in the index, seen as one row.
    """

    order: Tensor
    start: Tensor


@dataclass(frozen=True)
class Cuts:
    """Lists cut into stretches: block b has those from `first[b]` to `first[b + 1]`, and `owner` says whose each is.

    There are as many as there can be at most; those that are not needed belong to nobody. `over` numbers the stretches of blocks that
    have several, -1 for the others; there are at most `spare`.
    """

    first: Tensor
    owner: Tensor
    over: Tensor
    spare: int


def by_blocks(index: Tensor, blocks: int) -> Chosen:
    """Turn lists [units, queries, reads] round."""
    unit = torch.arange(len(index), device=index.device, dtype=torch.int32)[:, None, None] * blocks
    real = (index >= 0) & (index < blocks)
    name, order = torch.where(real, unit + index, len(index) * blocks).flatten().sort(stable=True)
    each = torch.arange(len(index) * blocks + 1, device=index.device, dtype=torch.int32)
    return Chosen(order.int(), torch.searchsorted(name, each, out_int32=True))


def cut(chosen: Chosen, length: int, least: int) -> Cuts:
    """Into stretches of `length` choices, at least `least` of each block."""
    count = chosen.start.diff()
    pieces = ((count + length - 1) // length).clamp(min=least)
    ends = pieces.cumsum(0, dtype=torch.int32)
    most = chosen.order.numel() // length + len(count)
    each = torch.arange(most, device=ends.device, dtype=torch.int32)
    owner = torch.searchsorted(ends, each, right=True, out_int32=True)
    several = torch.where(pieces > 1, pieces, 0)
    over = torch.where(pieces > 1, several.cumsum(0) - several, -1).int()
    first = torch.cat([torch.zeros_like(ends[:1]), ends])
    return Cuts(first, owner, over, 2 * chosen.order.numel() // length)
