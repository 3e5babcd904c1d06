"""LongGen: a few layers remember all, the others little."""

from fewer.cache import Allocator, Counts, Score
from fewer.cache._plan import room
from fewer.core import Paper, method

TITLE = "A Little Goes a Long Way: Efficient Long Context Training and Inference with Partial Contexts"


@method(Paper("2410.01485", TITLE, 2024, ledger=233))
class LongGen(Allocator):
    """Let a third of the layers, those in the middle, keep as much as they can; the others share what that leaves.

    The others keep at least `least` each, or the equal budget if that is less. `full` names other layers: a few are enough
    (2310.12442, ledger 226), the placing is a hyper-parameter there.

    Differs from the paper: it is not trained; the others' pattern is whatever method this divides for
    (`cache/streaming_llm` for a window and sinks), and a budget is met.

    Three layers of 100 tokens, 40 each: the middle one keeps 100, the others 10.

    >>> long_gen, score = LongGen(least=4), torch.zeros(1, 1, 100)
    >>> [long_gen.allocate(score, torch.tensor([[40]]), layer, 3).item() for layer in range(3)]
    [10, 100, 10]
    """

    full: tuple[int, ...] = ()
    least: int = 64

    def allocate(self, score: Score, counts: Counts, layer: int, layers: int) -> Counts:
        third = max(1, round(layers / 3))
        start = (layers - third) // 2
        full = [i for i in self.full if i < layers] or range(start, start + third)
        there, f = room(score), len(full)
        counts = counts.minimum(there)
        if f == layers:
            return counts
        other = ((layers * counts - f * there) // (layers - f)).maximum(counts.clamp(max=self.least))
        if layer not in full:
            return other
        return ((layers * counts - (layers - f) * other) // f).minimum(there)
