"""Finch: what the question at the prompt's end reads."""

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import protect
from fewer.core import Paper, method


@method(
    Paper("10.1162/tacl_a_00716", "FINCH: Prompt-guided Key-Value Cache Compression for Large Language Models", 2024)
)
class Finch(ByScore):
    """Keep the latest `window` tokens, the question, and what their queries read most, each query by how much it could read.

    score = mean over the window and the group of place of the query x softmax(scale q.k): a late query has divided its one
    over more tokens, so it counts for more.

    Differs from the paper: `window` is given and not found by a delimiter; `+ cache/rerotated` closes the gaps, as the paper
    does, `cache/chunk_wise` forgets chunk by chunk.

    The query at place 2 reads three alike tokens 1/3 each.

    >>> Finch(window=1).score(Past.of(torch.zeros(1, 1, 3, 1))).round(decimals=2)
    tensor([[[0.6700, 0.6700, 2.6700]]])
    """

    window: int = 64

    def score(self, past: Past) -> Score:
        read = past.attention() * past.text.now.clamp(min=0)[:, None, :, None]
        return protect(past, past.own, past.grouped(read).mean((2, 3)).masked_fill(past.own, 0.0))
