"""D2O: what goes is added to what it resembles."""

from dataclasses import replace
from math import e

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewer.cache import Cached, Corrector, Keep, Past
from fewer.core import Paper, method

TITLE = "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large Language Models"


@method(Paper("2406.13035", TITLE, 2024, equation="eqs. 5-8"))
class D2O(Corrector):
    """Merge each token that goes into the one that stays with the most similar key, if it is more similar than most.

    With u the cosine of the two keys, a token that stays becomes (e k + sum exp(u_i) k_i) / (e + sum exp(u_i)), its value alike;
    only tokens whose u is at least the mean u of their head's are merged.

    Differs from the paper: the threshold is the mean of the tokens that go now, where the paper lets it follow
    over the steps; how much each layer keeps is an allocator's matter.

    Two alike keys with values 0 and 1: the one that stays has the mean.

    >>> past = Past.of(torch.ones(1, 1, 2, 1), torch.tensor([[[[0.0], [1.0]]]]))
    >>> D2O().correct(past, torch.tensor([[[True, False]]])).v[0, 0, 0]
    tensor([0.5000])
    """

    def correct(self, past: Past, keep: Keep) -> Past:
        keep, gone = keep & past.real, past.real & ~keep
        like, into = nearest(past.k, keep)
        alike = torch.where(gone & keep.any(-1, keepdim=True), like, 0.0)
        mean = alike.sum(-1, keepdim=True) / gone.sum(-1, keepdim=True).clamp(min=1)
        weight = alike.exp() * (gone & keep.any(-1, keepdim=True) & (alike >= mean - 1e-6))
        return replace(past, k=self._merged(past.k, weight, into, keep), v=self._merged(past.v, weight, into, keep))

    def _merged(self, x: Cached, weight: Tensor, into: Tensor, keep: Keep) -> Cached:
        gets = torch.zeros_like(weight).scatter_add(2, into, weight)[..., None]
        place = into[..., None].expand_as(x)
        came = torch.zeros_like(x, dtype=torch.float32).scatter_add(2, place, weight[..., None] * x.float())
        changed = keep[..., None] & (gets > 0)
        return torch.where(changed, ((e * x.float() + came) / (e + gets)).to(x.dtype), x)


def nearest(k: Cached, keep: Keep, rows: int = 256) -> tuple[Tensor, Tensor]:
    """The greatest cosine of each key with one that stays, and where that is; `rows` keys at a time."""
    unit = normalize(k.float(), dim=-1)
    like = [(part @ unit.mT).masked_fill(~keep[:, :, None], -torch.inf).max(-1) for part in unit.split(rows, dim=2)]
    return torch.cat([x.values for x in like], 2), torch.cat([x.indices for x in like], 2)
