"""Products of queries with their group's keys, and means of blocks of which the last may be short."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import Key, Query, in_blocks


def dots(q: Query, k: Key) -> Float[Tensor, "batch heads queries keys"]:
    """q.k / sqrt(dim), each head with the keys of its group: what a softmax takes.

    >>> dots(torch.tensor([[[[2.0]], [[3.0]]]]), torch.tensor([[[[1.0], [4.0]]]])).tolist()
    [[[[2.0, 8.0]], [[3.0, 12.0]]]]
    """
    grouped = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)
    said = grouped @ k.to(q.dtype).mT * q.shape[-1] ** -0.5
    return said.unflatten(2, (-1, q.shape[2])).flatten(1, 2)


def means(x: Key, size: int) -> Float[Tensor, "batch heads blocks dim"]:
    """The mean of each block of `size`, the short last one's over what it has.

    >>> means(torch.tensor([1.0, 3.0, 5.0])[None, None, :, None], 2).flatten()
    tensor([2., 5.])
    """
    there = in_blocks(torch.ones_like(x[:1, :1, :, :1]), size).sum(3)
    return in_blocks(x, size).sum(3) / there


def best(score: Float[Tensor, "batch heads queries n"], rows: int) -> Float[Tensor, "batch heads q_blocks n"]:
    """The highest that any query of a block gives."""
    return in_blocks(score, rows, -torch.inf).amax(3)
