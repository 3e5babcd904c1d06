"""What several scores share: who stays whatever happens, what was asked for, how neighbours help each other."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from fewer.kernels import top_k

from ._protocol import Counts, Keep, Past, Score


def protect(past: Past, always: Keep, score: Score) -> Score:
    """`always` above all others of the layer, the newest of them first; the others stay as they are.

    >>> past = Past.of(torch.zeros(1, 1, 4, 2))
    >>> protect(past, past.rank < 2, torch.tensor([[[1.0, 2.0, 3.0, 0.0]]]))
    tensor([[[4.0000, 4.3333, 3.0000, 0.0000]]])
    """
    top = score.masked_fill(~past.real, -torch.inf).amax((1, 2), keepdim=True)
    at = past.text.at
    return torch.where(always, top + 1 + at / at.amax((1, 2), keepdim=True).clamp(min=1), score)


def asked(past: Past) -> Score:
    """The mean attention that the window's queries pay to each slot, over the heads of its group."""
    return past.grouped(past.attention()).mean((2, 3))


def smooth(score: Score, kernel: int) -> Score:
    """Each slot's mean with its neighbours; beyond the ends lie zeros."""
    return avg_pool1d(score, kernel, 1, kernel // 2)


def with_recent(past: Past, score: Score, recent: Counts, counts: Counts) -> Keep:
    """The `recent` newest tokens of each head, and the best of the others."""
    score = score.masked_fill(~past.real, -torch.inf)
    newest = top_k(past.at.float(), recent.minimum(past.real.sum(-1)))
    return top_k(protect(past, newest, score), counts.minimum(past.real.sum(-1)))


def standard(past: Past, score: Score) -> Score:
    """Shifted and scaled to mean 0 and deviation 1 over the tokens of a row, all heads together."""
    out = torch.zeros_like(score)
    for b, there in enumerate(past.real):
        x = score[b][there]
        out[b][there] = (x - x.mean()) / x.std().clamp(min=1e-6) if len(x) > 1 else 0.0
    return out


def without_turn(past: Past, x: Tensor, at: Tensor) -> Tensor:
    """Keys or queries as they were before their positions turned them."""
    return x.float() if past.rope is None else past.rope.turn(x.float(), -at)
