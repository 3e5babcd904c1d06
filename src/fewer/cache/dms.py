"""DMS: one number of a query says whether its token may be forgotten later."""

from torch import Tensor

from fewer.cache import ByScore, Counts, Keep, Past, Recent, Score
from fewer.cache._scores import with_recent
from fewer.core import Paper, method

TITLE = "Inference-Time Hyper-Scaling with KV Cache Compression"


@method(Paper("2506.05345", TITLE, 2025))
class Dms(ByScore):
    """Keep the newest `recent` tokens and those whose own query asked least to be forgotten.

    A token's logit is `scale` a - `offset`, a being the last number of the first query of its group, before its position turned it; attention sees
    zero there. Above 0, a token may go once it is not among these. It is for checkpoints that were trained so.

    Differs from the paper: how many go is a budget's matter, and they go by their logits' order; they take half of the budget at most.

    The second token asks to be forgotten, 100 * 0.1 - 5 > 0; the first and the third do not.

    >>> q = torch.tensor([[[[1.0, -0.3], [1.0, 0.1], [1.0, 0.0]]]])
    >>> past = Past.of(torch.ones(1, 1, 3, 2), q=q)
    >>> Dms().note(past), Dms().clean(past)[0, 0, 1]
    (tensor([[[35., -5.,  5.]]]), tensor([1., 0.]))
    """

    quick = False
    recent: int = 512
    scale: float = 100.0  # "dms_alpha_scale", "dms_initial_alpha_offset" of the released models
    offset: float = 5.0

    def note(self, past: Past) -> Score:
        return self.offset - self.scale * past.grouped(_plain(past, past.q))[:, :, 0, :, -1]

    def clean(self, past: Past) -> Recent:
        q = past.grouped(_plain(past, past.q)).clone()
        q[:, :, 0, :, -1] = 0
        return _turned(past, q.flatten(1, 2)).to(past.q.dtype)

    def score(self, past: Past) -> Score:
        return past.noted

    def evict(self, past: Past, counts: Counts) -> Keep:
        return with_recent(past, past.noted, (counts // 2).clamp(max=self.recent), counts)


def _plain(past: Past, q: Recent) -> Tensor:
    """Queries as they were before their positions turned them."""
    return q.float() if past.rope is None else past.rope.turn(q.float(), -past.now[:, None])


def _turned(past: Past, q: Tensor) -> Tensor:
    return q if past.rope is None else past.rope.turn(q, past.now[:, None])
