"""DFSS: of each few neighbouring keys, those with the highest scores."""

import torch

from fewer.attention import Keep, Key, Pattern, Query, reads
from fewer.core import Budget, Paper, method

from ._dots import dots

TITLE = "Dynamic N:M Fine-grained Structured Sparse Attention Mechanism"


@method(Paper("2203.00091", TITLE, 2022))
class Dfss(Pattern):
    """Read the `n` keys with the highest q.k of each `m` neighbours; the first `sinks` and the newest `recent` are all read.

    The budget is the most. `sinks` and `recent` are those of ModelOpt's "sparse_softmax".

    Differs from the paper: scores are made before they are pruned, and again where they are read: it says what is read, and is
    no kernel of sparse tensor cores.

    >>> q, k = torch.ones(1, 1, 1, 1), torch.tensor([[[[5.0], [4.0], [1.0], [3.0], [2.0]]]])
    >>> Dfss(n=1, m=2).attend(q, k, budget("100%"))  # 5 of 5 4, 3 of 1 3, itself
    tensor([[[[ True, False, False,  True,  True]]]])
    """

    sparing = True

    n: int = 2
    m: int = 4
    sinks: int = 0
    recent: int = 1
    rows: int = 1
    block: int = 1

    def attend(self, q: Query, k: Key, budget: Budget) -> Keep:
        if not 0 < self.n <= self.m or (self.rows, self.block) != (1, 1):
            raise ValueError(f"{self.name}: n of m single keys for each query, 0 < n <= m; not {self.n} of {self.m}")
        queries, keys = q.shape[2], k.shape[2]
        far = torch.arange(keys - queries, keys, device=q.device)[:, None] - torch.arange(keys, device=q.device)
        said = dots(q.float(), k.float()).masked_fill(far < 0, -torch.inf)
        some = torch.nn.functional.pad(said, (0, -keys % self.m), value=-torch.inf).unflatten(-1, (-1, self.m))
        rank = some.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        near = (rank < self.n).flatten(-2)[..., :keys]
        near |= (far < max(1, self.recent)) | (torch.arange(keys, device=q.device) < self.sinks)
        keep = reads(said, q, k.shape[1:3], budget, self)
        if keep.shape[1] < near.shape[1]:  # one query: its group reads together
            near = near.unflatten(1, (keep.shape[1], -1)).any(2)
        return keep & near
