"""CaM: the values of what goes are shared out among those behind."""

from dataclasses import replace

import torch

from fewer.cache import Corrector, Keep, Past
from fewer.cache._scores import asked
from fewer.core import Paper, method

URL = "https://proceedings.mlr.press/v235/zhang24n.html"


@method(Paper(URL, "CaM: Cache Merging for Memory-efficient LLMs Inference", 2024))
class Cam(Corrector):
    """Add to each of the next `share` tokens that stay v / share of a token that goes, with the probability of what it is read beside them.

    p = min(1, a / mean of the a of those next), a being the mean attention of the latest queries. Keys stay as they are. Luck is a token's own.

    Differs from the paper: as many of the latest queries as the evictor kept say what is read; where fewer stay behind it, its value is
    shared out among those.

    Alike keys, all read alike: p is 1. The value 4 of the first goes to the two behind it.

    >>> past = Past.of(torch.zeros(1, 1, 3, 1), torch.tensor([[[[4.0], [1.0], [2.0]]]]))
    >>> Cam(share=2).correct(past, torch.tensor([[[False, True, True]]])).v[0, 0].T
    tensor([[4., 3., 4.]])
    """

    share: int = 32
    seed: int = 0

    def correct(self, past: Past, keep: Keep) -> Past:
        keep, gone = keep & past.real, past.real & ~keep
        read, order = asked(past), keep.cumsum(-1)  # of those that stay, how many up to a slot
        count = keep.sum(-1, keepdim=True)
        into = (count - order).clamp(max=self.share)  # how many it is shared out among
        sums = torch.zeros_like(read).scatter_add(2, (order - 1).clamp(min=0), read * keep).cumsum(-1)
        sums = torch.nn.functional.pad(sums, (1, 0))  # of the first n that stay, what they are read
        mean = (sums.gather(2, order + into) - sums.gather(2, order)) / into.clamp(min=1)
        draws = self._luck(past) * mean < read
        part = torch.where((gone & draws & (into > 0))[..., None], past.v.float() / into.clamp(min=1)[..., None], 0.0)
        place = order[..., None].expand_as(part)
        steps = past.v.new_zeros(*keep.shape[:2], keep.shape[2] + 1, past.v.shape[-1], dtype=torch.float32)
        steps = steps.scatter_add(2, place, part)
        steps = steps.scatter_add(2, place + into[..., None], -part).cumsum(2)  # what each of those that stay gets
        came = steps.gather(2, (order - 1).clamp(min=0)[..., None].expand_as(part))
        changed = keep[..., None] & gone.any(-1)[..., None, None]
        return replace(past, v=torch.where(changed, (past.v.float() + came).to(past.v.dtype), past.v))

    def _luck(self, past: Past) -> torch.Tensor:
        at = past.text.at.long().clamp(min=0)
        luck = torch.rand(int(at.max()) + 1, at.shape[1], generator=torch.Generator().manual_seed(self.seed)).to(
            at.device
        )
        return luck.T.expand(len(at), -1, -1).gather(-1, at)
