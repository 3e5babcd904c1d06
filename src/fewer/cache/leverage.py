"""Leverage: keys that others cannot stand in for."""

import torch

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import standard, without_turn
from fewer.core import Paper, method

TITLE = "Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores"


@method(Paper("2507.08143", TITLE, 2025))
class Leverage(ByScore):
    """Keep the keys with the highest leverage score among all, found in a random sketch of `sketch` dimensions.

    X = (K - mean K) G, of keys before their rotation, G normal with variance 1 / sketch; score_i = x_i' (X'X + ridge I)^-1 x_i,
    the layer's mean and deviation made 0 and 1.

    Differs from the paper: kvpress' form, in float64.

    Of three keys two are alike: centred (1, 1, -2), leverage as 1 : 1 : 4, then made even.

    >>> Leverage(sketch=1).score(Past.of(torch.tensor([[[[3.0], [3.0], [0.0]]]]))).round(decimals=2)
    tensor([[[-0.5800, -0.5800,  1.1500]]])
    """

    sketch: int = 48
    ridge: float = 0.01
    seed: int = 0

    def score(self, past: Past) -> Score:
        return standard(past, leverage(past, self.sketch, self.ridge, self.seed))


def leverage(past: Past, sketch: int, ridge: float, seed: int) -> Score:
    """Of each head's keys; 0 in empty slots."""
    past = past.text
    k, real = without_turn(past, past.k, past.at), past.real[..., None]
    make = torch.Generator().manual_seed(seed)
    g = torch.randn(1, k.shape[1], k.shape[-1], sketch, generator=make).to(k.device) / sketch**0.5
    k = k * real
    k = (k - k.sum(2, keepdim=True) / real.sum(2, keepdim=True).clamp(min=1)) * real
    x = (k @ g).double()
    gram = x.mT @ x + ridge * torch.eye(sketch, dtype=x.dtype, device=x.device)
    return (x * torch.linalg.solve(gram, x.mT).mT).sum(-1).clamp(min=0).float()
