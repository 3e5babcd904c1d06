"""ChunkWise: every stretch of the text keeps its share."""

import torch

from fewer.cache import Around, ByScore, Counts, Keep, Past
from fewer.cache._protocol import kept
from fewer.cache.key_norm import KeyNorm
from fewer.core import Paper, method


@method(
    Paper("10.1162/tacl_a_00716", "FINCH: Prompt-guided Key-Value Cache Compression for Large Language Models", 2024)
)
class ChunkWise(Around):
    """Give every `chunk` slots their share of the budget, each scored by itself with another method.

    Differs from the paper: any method scores; shares are rounded so that the budget is met exactly.

    Of each two, the one with the shorter key.

    >>> past = Past.of(torch.tensor([[[[1.0], [2.0], [9.0], [8.0]]]]))
    >>> ChunkWise(chunk=2).evict(past, torch.tensor([[2]])).int()
    tensor([[[1, 0, 0, 1]]], dtype=torch.int32)
    """

    of: ByScore = KeyNorm()
    chunk: int = 1024

    def evict(self, past: Past, counts: Counts) -> Keep:
        there = past.real.sum(-1)
        counts = counts.minimum(there)
        keep, given = torch.zeros_like(past.real), torch.zeros_like(counts)
        for start in range(0, int(there.max()), self.chunk):
            upto = torch.full_like(there, start + self.chunk).minimum(there)
            part = past.real & (past.rank >= start) & (past.rank < start + self.chunk)
            quota = counts * upto // there.clamp(min=1) - given
            keep |= self.of.evict(kept(past, part), quota)
            given += quota
        return keep
