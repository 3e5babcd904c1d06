"""Observed attention: the mean of all the attention that a token ever got."""

from fewer.cache import ByScore, Past, Received, Score
from fewer.core import Paper, method

TITLE = "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models"


@method(Paper("2306.14048", TITLE, 2023))
class ObservedAttention(ByScore):
    """Keep the tokens that got most attention, each from the mean query that could read it.

    Differs from the paper: a mean instead of a sum, which would favour early tokens, and no share for recent ones, as
    in kvpress (ObservedAttentionPress). The paper's rule is `cache/h2o`.

    >>> ObservedAttention().score(Past.of(torch.zeros(1, 1, 2, 2), received=torch.tensor([[[0.75, 0.5]]])))
    tensor([[[0.7500, 0.5000]]])
    """

    needs = (Received,)

    def score(self, past: Past) -> Score:
        return past.received
