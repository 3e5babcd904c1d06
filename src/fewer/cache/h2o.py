"""H2O: heavy hitters and the newest, half and half."""

from fewer.cache import ByScore, Counts, Keep, Past, Received, Score
from fewer.cache._scores import with_recent
from fewer.core import Paper, method

TITLE = "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models"


@method(Paper("2306.14048", TITLE, 2023, equation="Algorithm 1"))
class H2O(ByScore):
    """Keep the newest tokens and, of the others, those that got most attention in sum.

    score = mean attention received x number of queries that could give it.

    Differs from the paper: one choice for the heads of a group. The sum favours early tokens; `cache/observed_attention`
    is the mean.

    Tokens 0, 1, 2 got 3/2, 1/2, 1/4: of two that stay one is the newest.

    >>> past = Past.of(torch.zeros(1, 1, 3, 2), received=torch.tensor([[[0.5, 0.25, 0.25]]]))
    >>> H2O().score(past), H2O().evict(past, torch.tensor([[2]]))
    (tensor([[[1.5000, 0.5000, 0.2500]]]), tensor([[[ True, False,  True]]]))
    """

    needs = (Received,)
    recent: float = 0.5  # the paper: "equal" parts

    def score(self, past: Past) -> Score:
        return past.received * (past.last + 1 - past.at)

    def evict(self, past: Past, counts: Counts) -> Keep:
        return with_recent(past, self.score(past), (counts * self.recent).long(), counts)
