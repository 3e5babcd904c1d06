"""VATP: attention counts as far as there is a value to be read."""

from fewer.cache import Around, ByScore, Past, Score
from fewer.cache._scores import protect
from fewer.cache.snap_kv import SnapKv
from fewer.core import Paper, method

TITLE = "Attention Score is Not All You Need for Token Importance Indicator in KV Cache Reduction: Value Also Matters"


@method(Paper("2406.12335", TITLE, 2024))
class Vatp(Around, ByScore):
    """Keep the tokens that are high in another method's score times |v|_1, and the first `sinks`.

    Sinks are read much though their values are small, so they stay without being asked.

    Differs from the paper: any method scores (theirs are H2O and Scissorhands); the number of sinks is StreamingLLM's.

    Attention 1/2 and 1/2, the second always stays (its score 1/4 + 1 + 1, smoothed by none); values 3 and 1.

    >>> past = Past.of(torch.zeros(1, 1, 2, 1), torch.tensor([[[[3.0], [1.0]]]]))
    >>> Vatp(SnapKv(window=1, kernel=1), sinks=0).score(past)
    tensor([[[1.5000, 2.5000]]])
    """

    of: ByScore = SnapKv()
    sinks: int = 4

    def score(self, past: Past) -> Score:
        score = self.of.score(past) * past.v.float().abs().sum(-1)
        return protect(past, past.real & (past.rank < self.sinks), score)
