"""QFilters: queries of a head lie along one direction, so keys along it are read."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.cache import ByScore, Past, Score
from fewer.core import Paper, method

TITLE = "Q-Filters: Leveraging QK Geometry for Efficient KV Cache Compression"


@method(Paper("2503.02812", TITLE, 2025, equation="Theorem 2.2"))
class QFilters(ByScore):
    """Keep the keys that reach furthest along the main direction of their head's queries: score = k . u.

    u is the first right singular vector of many queries of the group, with the sign that makes their mean positive.

    Differs from the paper: without learnt `filters` (`fit`) u is found from the queries since it was last asked, for each
    text anew. kvpress' filter files hold -u, and it scores -(k . -u).

    >>> past = Past.of(torch.tensor([[[[2.0, 9.0], [5.0, 0.0]]]]), q=torch.tensor([[[[3.0, 0.0]]]]))
    >>> QFilters().score(past)
    tensor([[[2., 5.]]])
    """

    window = 0
    filters: tuple[tuple[tuple[float, ...], ...], ...] = ()  # layers x kv_heads x dim

    @classmethod
    def fit(cls, layers: Sequence[Past]) -> "QFilters":
        """With the filters of these queries, one past for each layer."""
        return cls(tuple(tuple(tuple(u) for u in direction(past).mean(0).tolist()) for past in layers))

    def score(self, past: Past) -> Score:
        if self.filters:
            if past.layer is None or past.layer >= len(self.filters):
                raise ValueError(f"{self.name}: filters of {len(self.filters)} layers, asked for layer {past.layer}")
            u = torch.tensor(self.filters[past.layer], device=past.k.device)[None]
            if u.shape[1:] != (past.k.shape[1], past.k.shape[3]):
                raise ValueError(f"{self.name}: filters of {tuple(u.shape[1:])}, keys of {tuple(past.k.shape[1::2])}")
        else:
            u = direction(past)
        return (past.k.float() @ u[..., None])[..., 0]


def direction(past: Past) -> Float[Tensor, "batch kv_heads dim"]:
    q = past.grouped(past.q.float() * (past.now >= 0)[:, None, :, None]).flatten(2, 3)
    u = torch.linalg.eigh(q.mT @ q).eigenvectors[..., -1]
    return torch.where((q.sum(2) * u).sum(-1, keepdim=True) < 0, -u, u)
