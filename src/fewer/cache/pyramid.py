"""Pyramid: early layers keep more than late ones."""

import torch

from fewer.cache import Allocator, Counts, Score
from fewer.cache._plan import room
from fewer.core import Paper, method

TITLE = "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling"


@method(Paper("2406.02069", TITLE, 2024, equation="eqs. 4-6"))
class Pyramid(Allocator):
    """Let the counts fall evenly from the first layer to the last, their mean the budget b: last = b / `steep`, first = 2b - last.

    If the first would keep more than all but `window` tokens, it keeps those, and the last keeps more. If the last would keep
    fewer than `window` the counts stay equal.

    Differs from the paper: this fallback, and a window that counts as part of the budget, as in kvpress (20 and 64).

    b = 100 of 400 tokens, three layers, steep 5: 180, 100, 20.

    >>> pyramid, score = Pyramid(steep=5.0, window=8), torch.zeros(1, 1, 400)
    >>> [pyramid.allocate(score, torch.tensor([[100]]), layer, 3).item() for layer in range(3)]
    [180, 100, 20]
    """

    steep: float = 20.0  # the paper's beta
    window: int = 64

    def allocate(self, score: Score, counts: Counts, layer: int, layers: int) -> Counts:
        there = room(score)
        mean = counts.double()
        last = mean / self.steep
        first = 2 * mean - last
        most = (there - self.window).double()
        first, last = first.minimum(most), torch.where(first >= most, 2 * mean - most, last)
        falls = (there >= first) & (first >= last) & (last >= self.window)
        mine = (first - layer * (first - last) / max(1, layers - 1)).round().long()
        return torch.where(falls, mine, counts).minimum(there)
