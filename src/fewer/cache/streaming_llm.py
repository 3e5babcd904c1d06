"""StreamingLLM: the first tokens and the newest."""

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import protect
from fewer.core import Paper, method


@method(Paper("2309.17453", "Efficient Streaming Language Models with Attention Sinks", 2023))
class StreamingLlm(ByScore):
    """Keep the first `sinks` tokens and the newest.

    Differs from the paper: keys stay turned to their places in the text; `+ cache/rerotated` gives them places in the
    cache, as the paper does.

    >>> StreamingLlm(sinks=1).evict(Past.of(torch.zeros(1, 1, 5, 2)), torch.tensor([[3]])).int()
    tensor([[[1, 0, 0, 1, 1]]], dtype=torch.int32)
    """

    sinks: int = 4  # "four initial tokens"

    def score(self, past: Past) -> Score:
        return protect(past, past.real & (past.rank < self.sinks), past.at.float())
