"""HeadKV: heads that retrieve and reason keep more."""

from fewer.cache import Allocator, Counts, Score
from fewer.cache._plan import check_plan, planned
from fewer.core import Paper, method

TITLE = "Not All Heads Matter: A Head-Level KV Cache Compression Method with Integrated Retrieval and Reasoning"


@method(Paper("2410.19258", TITLE, 2024, equation="eq. 4"))
class HeadKv(Allocator):
    """Give each head of the model 1 - 1 / `pool` of an equal budget; the rest goes to heads by their `importance`.

    count = b (1 - 1 / pool) + b / pool x importance / mean importance, b the equal count.

    Differs from the paper: what one head cannot take the others do. Without `importance` (layers x kv_heads, measured on
    retrieval tasks) all heads are alike. pool = 1.2 is one of the values that the paper tries.

    b = 6 and pool 2: 3 for each, and 6 more for the head that alone matters.

    >>> HeadKv(((1.0, 0.0),), pool=2.0).allocate(torch.zeros(1, 2, 20), torch.tensor([[6, 6]]), layer=0, layers=1)
    tensor([[9, 3]])
    """

    importance: tuple[tuple[float, ...], ...] = ()
    pool: float = 1.2

    def allocate(self, score: Score, counts: Counts, layer: int, layers: int) -> Counts:
        heads = counts.shape[1]
        importance = self.importance or ((1.0,) * heads,) * layers
        check_plan(self.name, importance, layers, heads)
        mean = sum(map(sum, importance)) / (layers * heads) or 1.0
        weights = [[1 - 1 / self.pool + x / mean / self.pool for x in row] for row in importance]
        return planned(score, counts, weights, layer)
