"""MoA: each head has a span of its own, which grows with the text."""

from fewer.cache import Allocator, Counts, Score
from fewer.cache._plan import check_plan, planned, room
from fewer.core import Paper, method

TITLE = "MoA: Mixture of Sparse Attention for Automatic Large Language Model Compression"


@method(Paper("2406.14909", TITLE, 2024, ledger=9, equation="eq. 2"))
class Moa(Allocator):
    """Divide the model's slots over its heads as their spans: `spans[layer][head]` = (a, b), a span of a + b n after n tokens.

    Used with `cache/streaming_llm`, as in the paper: each head has sinks and a window of its own length.

    Differs from the paper: spans are given and not searched for; they are scaled so that the budget is met.
    Without spans all heads are alike.

    Of 16 tokens spans of 4 and 2 + 16 / 8: alike; of 80 they are 4 and 12, one to three.

    >>> moa = Moa((((4.0, 0.0), (2.0, 0.125)),))
    >>> [moa.allocate(torch.zeros(1, 2, n), torch.tensor([[8, 8]]), layer=0, layers=1) for n in (16, 80)]
    [tensor([[8, 8]]), tensor([[ 4, 12]])]
    """

    spans: tuple[tuple[tuple[float, float], ...], ...] = ()

    def allocate(self, score: Score, counts: Counts, layer: int, layers: int) -> Counts:
        heads, n = counts.shape[1], int(room(score).max())
        spans = self.spans or (((1.0, 0.0),) * heads,) * layers
        check_plan(self.name, spans, layers, heads)
        return planned(score, counts, [[a + b * n for a, b in row] for row in spans], layer)
