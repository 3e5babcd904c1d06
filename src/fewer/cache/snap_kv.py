"""SnapKV: the end of the prompt knows what will be read."""

from fewer.cache import ByScore, Past, Score
from fewer.cache._scores import asked, protect, smooth
from fewer.core import Paper, method


@method(Paper("2404.14469", "SnapKV: LLM Knows What You are Looking for Before Generation", 2024))
class SnapKv(ByScore):
    """Keep the latest `window` tokens and those that their queries read most, smoothed over `kernel` neighbours.

    score = mean over the window's queries and the group's heads of softmax(scale q.k), then the mean of `kernel` slots;
    the window's own attention counts in the softmax, beyond the ends lie zeros.

    Differs from the paper: means instead of sums and max-pooling, and one choice for the heads of a group, as kvpress
    does, whose window of 64 and kernel of 5 these are. Neighbours are those in the cache, once something was forgotten.

    Alike keys: the one query reads four tokens 1/4 each, three of them are not its own.

    >>> SnapKv(window=1, kernel=3).score(Past.of(torch.zeros(1, 1, 4, 1))).round(decimals=3)
    tensor([[[0.1670, 0.2500, 0.1670, 2.2500]]])
    """

    window: int = 64
    kernel: int = 5

    def score(self, past: Past) -> Score:
        others = asked(past).masked_fill(past.own | ~past.real, 0.0)
        return protect(past, past.own, smooth(others, self.kernel))
