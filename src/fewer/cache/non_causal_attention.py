"""NonCausalAttention: what a span reads when it may also look ahead."""

import torch

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import smooth, standard
from fewer.core import Paper, method

TITLE = "Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores"


@method(Paper("2507.08143", TITLE, 2025))
class NonCausalAttention(ByScore):
    """Keep what all queries of a token's chunk read, earlier ones too, times its value's length.

    In chunks of `chunk` places: score = |v| x mean over the group of sum over the chunk's queries of softmax(scale q.k) over
    the chunk's keys; then the mean of three neighbours, and the layer's mean and deviation made 0 and 1. Tokens without a
    query of their chunk (they were cached before) get nothing.

    Differs from the paper: as in kvpress, which leaves out the scale of q.k and lets padding of the last chunk be read.

    Two queries read two alike tokens 1/2 each, values 1 and 3: 1 and 3, each with its neighbours a third of 4.

    >>> past = Past.of(torch.zeros(1, 1, 2, 1), torch.tensor([[[[1.0], [3.0]]]]), torch.zeros(1, 1, 2, 1))
    >>> NonCausalAttention().score(past)
    tensor([[[0., 0.]]])
    """

    window = 0
    chunk: int = 256

    def score(self, past: Past) -> Score:
        return chunked(past.text, self.chunk)


def chunked(past: Past, chunk: int, first: int = 0) -> Score:
    """The score, with chunks counted from place `first`."""
    q, group = past.grouped(past.q.float()), past.q.shape[1] // past.k.shape[1]
    at, now = past.at, past.now
    read = past.k.new_zeros(at.shape, dtype=torch.float32)
    places = now[now >= first].sub(first).div(chunk, rounding_mode="floor").unique().tolist()
    for c in places:
        low, high = first + c * chunk, first + (c + 1) * chunk
        mine, asks = (at >= low) & (at < high), (now >= low) & (now < high)
        keys, queries = mine.any(0).any(0).nonzero()[:, 0], asks.any(0).nonzero()[:, 0]
        z = past.scale * (q[:, :, :, queries] @ past.k[:, :, keys].float()[:, :, None].mT)
        may = mine[:, :, keys][:, :, None, None] & asks[:, None, None, queries, None]
        share = torch.where(may, z.masked_fill(~may, -torch.inf).softmax(-1), 0.0)
        read[:, :, keys] += share.sum((2, 3)) / group
    return standard(past, smooth((read * past.v.float().norm(dim=-1)).masked_fill(~past.real, 0.0), 3))
