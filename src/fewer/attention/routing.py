"""Routing Transformer: a query reads the keys that lie deepest in its own cluster."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._dots import best

Centres = Float[Tensor, "kv_heads clusters dim"]


@method(Paper("2003.05997", "Efficient Content-Based Sparse Attention with Routing Transformers", 2020, ledger=176))
class Routing(ByScore):
    """Rank a key by mu.k, both of length one, mu the centre that is nearest to the query by angle.

    Centres are learnt by spherical k-means of queries and keys together: `fit(q, k)` begins at vectors that stand at equal distances
    and takes `turns` turns, `moved(q, k)` takes one step of the paper's online k-means, mu' = decay mu + (1 - decay) times the
    mean of its members. Each cluster so gives its top w keys to those who ask in it: the budget is w. Before a fit, the query
    itself is the centre.

    Differs from the paper: queries and keys are two, as a trained model has them, where it shares one; a query has one
    cluster, and reads the best of what lies before it, where a cluster's top w are taken of the whole text and then masked, so
    that the future has a say in what is read and queries near no centre read nothing.

    >>> q, k = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[2.0, 0.0], [0.0, 5.0]]]])
    >>> m = Routing(centres=(((0.6, 0.8), (-1.0, 0.0)),))  # the first is the query's
    >>> m.score(q, m.digest(k))
    tensor([[[[0.6000, 0.8000]]]])
    """

    fits = "centres"

    clusters: int = 16
    turns: int = 10
    decay: float = 0.999  # "lambda = 0.999"
    centres: tuple[tuple[tuple[float, ...], ...], ...] = ()  # kv_heads, clusters, dim; of length one
    rows: int = 1
    block: int = 1

    def fit(self, q: Query, k: Key) -> "Routing":
        x = _members(q, k)
        start = (torch.arange(self.clusters, device=x.device) + 0.5) / self.clusters * x.shape[1]
        mu = x[:, start.long()]
        for _ in range(self.turns):
            mu = self._step(x, mu, 0.0)
        return self._with(mu)

    def moved(self, q: Query, k: Key) -> "Routing":
        """One step of training on one batch: the centres that it had members of have moved."""
        if not self.centres:
            return self.fit(q, k)
        x = _members(q, k)
        return self._with(self._step(x, self._centres(x), self.decay))

    def digest(self, k: Key) -> Digest:
        return (normalize(k, dim=-1),)

    def score(self, q: Query, digest: Digest) -> Score:
        (k,) = digest
        asks = normalize(q, dim=-1).unflatten(1, (k.shape[1], -1))
        if self.centres:
            mu = self._centres(q)
            if len(mu) != k.shape[1]:
                raise ValueError(f"{self.name} was fitted to {len(mu)} heads of keys, here are {k.shape[1]}")
            mine = (asks @ mu[:, None].mT).argmax(-1, keepdim=True)
            asks = (
                mu[:, None, None]
                .expand(*asks.shape[:4], -1, -1)
                .gather(4, mine[..., None].expand(*mine.shape, mu.shape[-1]))
            )
            asks = asks.squeeze(4)
        return best((asks @ k[:, :, None].to(q.dtype).mT).flatten(1, 2), self.rows)

    def _step(self, x: Tensor, mu: Tensor, decay: float) -> Tensor:
        member = one_hot((x @ mu.mT).argmax(-1), mu.shape[1]).to(x.dtype)
        mean = member.mT @ x / member.sum(1)[..., None].clamp(min=1)
        there = member.sum(1)[..., None] > 0
        return torch.where(there, normalize(decay * mu + (1 - decay) * mean, dim=-1), mu)

    def _centres(self, like: Tensor) -> Centres:
        return torch.tensor(self.centres, dtype=like.dtype, device=like.device)

    def _with(self, mu: Tensor) -> "Routing":
        return replace(self, centres=tuple(tuple(map(tuple, head)) for head in mu.tolist()))


def _members(q: Query, k: Key) -> Float[Tensor, "kv_heads n dim"]:
    """Queries and keys of each head of the keys, in the order of their places, of length one."""
    both = torch.cat([k[:, :, None], q.unflatten(1, (k.shape[1], -1))], 2) if q.shape[2] == k.shape[2] else None
    if both is None:
        both = torch.cat([k, q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)], 2)[:, :, None]
    return normalize(both.double().permute(1, 0, 3, 2, 4).flatten(1, 3), dim=-1)
