"""KVzip: what the model reads when it says the text again."""

from dataclasses import replace
from functools import reduce

import torch

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import protect
from fewer.core import Paper, method


@method(Paper("2505.23416", "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction", 2025))
class KvZip(ByScore):
    """Keep the tokens that some query since it was last asked read most: score = max over queries and group of attention.

    The paper's queries are those of a second pass, in which the model is told to repeat the text. Who runs that pass over
    the cache and then asks gets the paper's method; who asks after the first pass gets the greatest attention in it.

    Differs from the paper: no second pass of its own; the softmax is over all that a query may read, not one chunk of it.

    >>> past = Past.of(torch.tensor([[[[1.0], [4.0]]]]).log(), q=torch.tensor([[[[0.0], [1.0]]]]))
    >>> KvZip(sinks=0).score(past)
    tensor([[[1.0000, 0.8000]]])
    """

    window = 0
    sinks: int = 4
    rows: int = 256  # queries at a time

    def score(self, past: Past) -> Score:
        parts = zip(past.q.split(self.rows, 2), past.now.split(self.rows, 1), strict=True)
        each = (replace(past, q=q, now=now) for q, now in parts)  # never all queries against all keys
        score = reduce(torch.maximum, (past.grouped(part.attention()).amax((2, 3)) for part in each))
        return protect(past, past.real & (past.rank < self.sinks), score)
