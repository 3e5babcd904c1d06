"""ShadowKV: landmarks of small chunks; chunks that no landmark describes are always read."""

import torch
import torch.nn.functional as F

from fewer.attention import ByScore, Digest, Key, Query, Score, in_blocks
from fewer.core import Paper, method

from ._dots import best, dots, means

TITLE = "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference"


@method(Paper("2410.21465", TITLE, 2024, ledger=229))
class ShadowKv(ByScore):
    """Rank a chunk by q.mean(k) / sqrt(d); first come those chunks with the key that is least like its mean.

    An outlier is one of the share `exact` of chunks with the smallest min_i cos(k_i, mean(k)).

    Differs from the paper: outliers are counted in the budget. That keys are kept as low-rank factors, and values elsewhere, is
    a matter of the cache.

    >>> m = ShadowKv(block=2, exact=0.5)
    >>> k = torch.tensor([[[[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [3.0, 1.0]]]])
    >>> landmarks, alike = m.digest(k)
    >>> landmarks.tolist(), alike.flatten().round(decimals=4)
    ([[[[0.5, 1.0], [3.0, 1.0]]]], tensor([0.4472, 1.0000]))
    >>> m.score(torch.tensor([[[[1.0, 0.0]]]]), (landmarks, alike)).argmax().item()  # though q.mean is 0.5 there, 3 in the other
    0
    """

    phases = ("decode",)

    exact: float = 0.012  # 48 chunks of 4096
    rows: int = 1
    block: int = 8

    def digest(self, k: Key) -> Digest:
        mean = means(k, self.block)
        alike = F.cosine_similarity(in_blocks(k, self.block), mean[:, :, :, None], dim=-1)
        real = in_blocks(torch.ones_like(k[:1, :1, :, :1]), self.block)[..., 0] > 0
        return mean, alike.masked_fill(~real, 1.0).amin(-1)

    def score(self, q: Query, digest: Digest) -> Score:
        mean, alike = digest
        said = best(dots(q, mean), self.rows)
        many = int(self.exact * alike.shape[-1])
        strange = alike.argsort(dim=-1, stable=True).argsort(dim=-1) < many
        strange = strange.repeat_interleave(q.shape[1] // mean.shape[1], 1)[:, :, None]
        return said + strange * (said.amax(-1, keepdim=True) - said.amin(-1, keepdim=True) + 1)
