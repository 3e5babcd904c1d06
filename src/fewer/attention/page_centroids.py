"""Page centroids: rank a page by the best of a few centres of its keys."""

import torch

from fewer.attention import ByScore, Digest, Key, Query, Score, in_blocks
from fewer.core import Paper, method

from ._dots import best, dots


@method(Paper("2411.09688", "Squeezed Attention: Accelerating Long Context Length LLM Inference", 2024, ledger=289))
class PageCentroids(ByScore):
    """Rank a page by the highest q.c / sqrt(d) of its `count` centroids c, found by k-means among its keys.

    Differs from the paper: it clusters all keys of a fixed prompt and reads whole clusters (`centroids`); here each page has
    clusters of its own, so that it can be done while the text grows, and pages are read. Distances are Euclidean.

    >>> k = torch.tensor([[[[0.0], [1.0], [8.0], [10.0]]]])
    >>> PageCentroids(count=2, block=4).digest(k)[0].flatten()
    tensor([0.5000, 9.0000])
    """

    count: int = 4
    turns: int = 5
    rows: int = 16
    block: int = 64

    def digest(self, k: Key) -> Digest:
        pages = in_blocks(k.float(), self.block)
        real = in_blocks(torch.ones_like(k[:1, :1, :, :1].float()), self.block)
        many = real.sum(3, keepdim=True)  # how many keys a page has
        start = (torch.arange(self.count, device=k.device) + 0.5) / self.count  # spread over the page
        at = (start[:, None] * many).long().expand(*pages.shape[:3], -1, pages.shape[-1])
        centre = pages.gather(3, at)
        for _ in range(self.turns):
            mine = torch.cdist(pages, centre).argmin(-1)
            member = torch.nn.functional.one_hot(mine, self.count).float() * real
            total = member.sum(3)[..., None]
            centre = torch.where(total > 0, member.mT @ pages / total.clamp(min=1), centre)
        return (centre.to(k.dtype),)

    def score(self, q: Query, digest: Digest) -> Score:
        said = dots(q, digest[0].flatten(2, 3)).unflatten(-1, (-1, self.count)).amax(-1)
        return best(said, self.rows)
