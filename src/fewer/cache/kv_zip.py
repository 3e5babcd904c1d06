"""KVzip: what the model reads when it says the text again."""

from dataclasses import replace
from functools import reduce

import torch

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import protect
from fewer.core import Paper, method


@method(Paper("2505.23416", "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction", 2025))
class KvZip(ByScore):
    """Keep the tokens that are read most when the model says the text again: score = max over queries and group of attention.

    As soon as a prompt is read, it is said again, `chunk` tokens at a time, each part behind the tokens `prompt` (of "Repeat the previous context:",
    say) and the 8 tokens before it; what that reads is noted, and all of it is taken back. With `chunk=0` the queries since it was last asked
    stand for these.

    Differs from the paper: the softmax is over all that a query may read, not one chunk of it; one budget for each head, unless an allocator
    divides it. Nothing is said again while decoding: what came since is scored by the queries there were.

    >>> past = Past.of(torch.tensor([[[[1.0], [4.0]]]]).log(), q=torch.tensor([[[[0.0], [1.0]]]]))
    >>> KvZip(sinks=0).score(past)
    tensor([[[1.0000, 0.8000]]])
    """

    window = 0
    sinks: int = 4
    chunk: int = 2048
    prompt: tuple[int, ...] = ()
    rows: int = 256  # queries at a time

    def score(self, past: Past) -> Score:
        parts = zip(past.q.split(self.rows, 2), past.now.split(self.rows, 1), strict=True)
        each = (replace(past, q=q, now=now) for q, now in parts)  # never all queries against all keys
        score = reduce(torch.maximum, (past.grouped(part.attention()).amax((2, 3)) for part in each))
        if past.again is not None:
            score = torch.where(past.again > 0, past.again, score)
        return protect(past, past.real & (past.rank < self.sinks), score)
