"""BlockWise: read on, and forget, a block at a time."""

from fewer.cache import Around, ByScore, Counts, Keep, Past
from fewer.cache._protocol import kept
from fewer.cache.key_diff import KeyDiff
from fewer.core import Paper, method

TITLE = "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained Environments"


@method(Paper("2504.15364", TITLE, 2025, equation="Algorithm 1"))
class BlockWise(Around):
    """Go over the slots `block` at a time, and keep after each the budget's number of what is left, by another method.

    So memory never holds more than the budget and a block. Where a score does not depend on what else is there, this is
    the same as choosing once.

    Differs from the paper: any method scores.

    >>> past = Past.of(torch.tensor([[[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.0]]]]))
    >>> BlockWise(block=1).evict(past, torch.tensor([[2]])).int()
    tensor([[[1, 0, 1, 0]]], dtype=torch.int32)
    """

    of: ByScore = KeyDiff()
    block: int = 128

    def evict(self, past: Past, counts: Counts) -> Keep:
        counts, there = counts.minimum(past.real.sum(-1)), past.real.sum(-1)
        keep = past.real & (past.rank < counts[..., None])
        for i in range(-(-int((there - counts).max()) // self.block)):
            first = counts[..., None] + i * self.block
            new = past.real & (past.rank >= first) & (past.rank < first + self.block)
            keep = self.of.evict(kept(past, keep | new), counts)
        return keep
