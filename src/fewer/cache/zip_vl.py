"""ZipVL: as many tokens as it takes to hold most of the attention."""

import torch

from fewer.cache import Allocator, Counts, Score
from fewer.cache._plan import planned, room
from fewer.core import Paper, method

TITLE = "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification and KV Cache Compression"


@method(Paper("2410.08584", TITLE, 2024, ledger=245, equation="eq. 6"))
class ZipVl(Allocator):
    """Divide a layer's slots over its heads as the number of best tokens that hold a `share` of each head's score.

    It is for scores that are shares of attention (`cache/observed_attention`, `cache/alisa`, `cache/kv_zip`).

    Differs from the paper: there the number itself is the layer's budget, which no total bounds, and the rest is not
    forgotten but stored in fewer bits; here it divides what the budget gives a layer. Negative scores count as zero.

    The first head needs one token for 0.9 of its attention, the second three.

    >>> score = torch.tensor([[[0.95, 0.03, 0.02, 0.0], [0.3, 0.3, 0.3, 0.1]]])
    >>> ZipVl(share=0.9).allocate(score, torch.tensor([[2, 2]]), layer=0, layers=1)
    tensor([[1, 3]])
    """

    share: float = 0.975

    def allocate(self, score: Score, counts: Counts, layer: int, layers: int) -> Counts:
        best = score.clamp(min=0).double().sort(descending=True).values
        want = self.share * best.sum(-1, keepdim=True) * (1 - 1e-6)
        needed = ((best.cumsum(-1) < want).sum(-1) + 1).minimum(room(score).clamp(min=1))
        rows = [planned(score[b : b + 1], counts[b : b + 1], [needed[b].tolist()], 0) for b in range(len(counts))]
        return torch.cat(rows)
