"""SpargeAttn: blocks are pooled where they are alike in themselves; where not, they are read."""

import torch
import torch.nn.functional as F

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._dots import dots, means

TITLE = "SpargeAttn: Accurate Sparse Attention Accelerating Any Model Inference"


@method(Paper("2502.18137", TITLE, 2025, ledger=202))
class Sparge(ByScore):
    """Read the fewest blocks whose softmax of mean(q).mean(k) / sqrt(d) reaches `p`, and all that are not alike in themselves.

    A block is alike in itself if the mean cosine of all pairs within is above `alike`: |mean_i k_i / |k_i||^2. Keys that are
    not come first; of queries that are not, means say nothing, and all blocks count the same. The budget is the most.

    Differs from the paper: queries that are not alike read the share p from near to far, where it reads everything; no second stage within the kernel, no 8-bit products.

    >>> m = Sparge(rows=1, block=2)
    >>> k = torch.tensor([[[[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]]])
    >>> m.digest(k)[1].flatten()
    tensor([1., 0.])
    """

    phases = ("prefill",)

    p: float = 0.9
    alike: float = 0.5
    rows: int = 64
    block: int = 64

    def digest(self, k: Key) -> Digest:
        return means(k, self.block), means(F.normalize(k, dim=-1), self.block).square().sum(-1)

    def score(self, q: Query, digest: Digest) -> Score:
        mean, alike = digest
        said = dots(means(q, self.rows), mean)
        clear = means(F.normalize(q, dim=-1), self.rows).square().sum(-1)[..., None] > self.alike
        near = torch.arange(said.shape[-1], device=q.device) * 1e-4  # nearly the same
        said = torch.where(clear, said, near.to(said))
        strange = (alike <= self.alike).repeat_interleave(q.shape[1] // mean.shape[1], 1)[:, :, None]
        return said + strange * (said.amax(-1, keepdim=True) - said.amin(-1, keepdim=True))
