"""Scatterbrain: random features for all keys, the truth for some."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import ByScore, Mixer, Out, Reading, choose, in_chunks, laid
from fewer.attention.hash_buckets import HashBuckets
from fewer.core import Budget, Paper, method
from fewer.kernels._scores import softmax_of

TITLE = "Scatterbrain: Unifying Sparse and Low-rank Attention Approximation"


@method(Paper("2110.15343", TITLE, 2021, ledger=285))
class Scatterbrain(Mixer):
    """Weigh the keys that the budget lets be read exactly, and all others by an estimate from random features, together.

    exp(x.y) is estimated by mean_i f_i(x) f_i(y), f_i(x) = exp(w_i.x - |x|^2 / 2) with `features` directions w of a normal distribution,
    orthogonal in groups of `dim` (Performer's positive features), x = sqrt(scale) q and y = sqrt(scale) k; without bias before all is divided by its sum.
    On the support, exp(x.y) takes its place. `of` ranks keys for each query: by hashes, which find large exp(x.y), where the
    estimate is worst. All of the budget is softmax attention.

    Weights are worked out for all keys, some queries at a time: exact, and no faster than dense attention.

    >>> here = torch.zeros(1, 1, 2, 1)  # f(0) = 1, so the estimate is right: both keys have the same weight
    >>> r = Reading.of(here, here, torch.tensor([[[[1.0], [3.0]]]]))
    >>> Scatterbrain().mix(r, budget("50%")).flatten()
    tensor([1., 2.])
    """

    chooses, sinks = True, False
    of: ByScore = HashBuckets()
    features: int = 64
    seed: int = 0

    def mix(self, r: Reading, budget: Budget) -> Out:
        if r.cap:
            raise ValueError(f"{self.name}: random features know no cap of scores, and this model has one of {r.cap}")
        r, rank = laid(r, self), replace(self.of, rows=1, block=1)
        wide, dim = torch.promote_types(r.q.dtype, torch.float32), r.q.shape[-1]
        along = directions(self.features, dim, self.seed).to(r.q.device, wide)
        keys = feature_logs(r.k.to(wide) * r.scale**0.5, along)[:, :, None]
        most = keys.detach().masked_fill(r.at[:, :, None, :, None] < 0, -torch.inf).amax((-1, -2), keepdim=True)
        most, values = most.clamp(min=-1e30), r.v.to(wide)[:, :, None]
        spread, digest = (keys - most).clamp(max=0).exp(), rank.digest(r.k.detach())

        def part(some: slice) -> Tensor:
            may, q = r.may(some), r.q[:, :, some]
            with torch.no_grad():
                score = r.grouped(rank.score(q, digest)).masked_fill(~may, -torch.inf).flatten(1, 2)
                keep = r.grouped(choose(score, r.now[:, None, some], budget, rank))
            mine = feature_logs(r.grouped(q).to(wide) * r.scale**0.5, along)
            high = mine.detach().amax(-1, keepdim=True)
            guess = ((mine - high).exp() @ spread.mT / self.features).clamp(min=torch.finfo(wide).tiny)
            exact = r.scores(some)
            return softmax_of(torch.where(keep, exact, guess.log() + high + most), may, values)[0].flatten(1, 2)

        return in_chunks(r, part).to(r.q.dtype)


def feature_logs(x: Float[Tensor, "*lead n dim"], along: Float[Tensor, "features dim"]) -> Tensor:
    """w.x - |x|^2 / 2, of each feature."""
    return x @ along.mT - x.square().sum(-1, keepdim=True) / 2


def directions(features: int, dim: int, seed: int) -> Float[Tensor, "features dim"]:
    """Normal in each dimension, and orthogonal to the others of their group."""
    make, groups = torch.Generator().manual_seed(seed), []
    for _ in range(math.ceil(features / dim)):
        turn, upper = torch.linalg.qr(torch.randn(dim, dim, generator=make))
        groups.append((turn * upper.diagonal().sign()).mT)  # without the signs they would lean to one side
    return torch.cat(groups)[:features] * torch.randn(features, dim, generator=make).norm(dim=1, keepdim=True)
