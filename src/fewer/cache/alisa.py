"""ALISA: sparse window attention, a local half and a half that was lately read."""

from fewer.cache import ByScore, Counts, Keep, Past, Score
from fewer.cache._scores import asked, with_recent
from fewer.core import Paper, method

TITLE = "ALISA: Accelerating Large Language Model Inference via Sparsity-Aware KV Caching"


@method(Paper("2403.17312", TITLE, 2024, ledger=271, equation="Algorithm 1"))
class Alisa(ByScore):
    """Keep the newest tokens and, of the others, those that the latest `window` queries read most.

    It is H2O with a memory that fades: only recent attention is summed.

    Differs from the paper: its scheduler (offload, delete and recompute) is not here; the window's length is ours.

    Keys 2, 0, 0 and a query of 1: the first is read most, the last is the newest.

    >>> past = Past.of(torch.tensor([[[[2.0], [0.0], [0.0]]]]), q=torch.ones(1, 1, 1, 1))
    >>> Alisa().evict(past, torch.tensor([[2]]))
    tensor([[[ True, False,  True]]])
    """

    window: int = 32
    recent: float = 0.5  # the paper splits evenly between local and global tokens

    def score(self, past: Past) -> Score:
        return asked(past)

    def evict(self, past: Past, counts: Counts) -> Keep:
        return with_recent(past, self.score(past), (counts * self.recent).long(), counts)
