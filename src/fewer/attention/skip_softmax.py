"""BLASST's skipped softmax: a tile whose scores are far below the greatest seen so far is passed over."""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import Keep, Key, Pattern, Query, Score, newest, reads
from fewer.core import Budget, Paper, method

from ._dots import dots

TITLE = "BLASST: Dynamic BLocked Attention Sparsity via Softmax Thresholding"
TRIALS = torch.linspace(-20, -0.1, 200, dtype=torch.float64)  # logarithms of thresholds that are tried
FITTED = (0.1, 0.9)  # shares passed over that the line is laid through: where no tile, or every one, goes, it bends


@method(Paper("2512.12087", TITLE, 2025))
class SkipSoftmax(Pattern):
    """Read a tile if a query in it has a key with exp(s - m) >= scale / keys, m the greatest s from the first key up to this tile.

    `scale` is a * exp(b * (1 - aim)), as ModelOpt writes it: `aim` is the share of tiles that is to be read, and a and b are
    found from queries and keys, unless a is given. The budget is the most; tiles with the largest exp(s - m) of a row's greatest m come first.

    Differs from the paper: tiles are chosen before they are read, so that products of queries and keys are made twice; here
    it says what is skipped, not how fast.

    >>> q, k = torch.ones(1, 1, 1, 1), torch.tensor([[[[5.0], [4.0], [1.0], [3.0]]]])
    >>> SkipSoftmax(a=1.0, rows=1, block=1).attend(q, k, budget("100%"))  # e^-1 > 1 / 4 > e^-4; itself
    tensor([[[[ True,  True, False,  True]]]])
    """

    sparing = True
    fits = "a"

    a: float = 0.0  # not known: nothing is skipped
    b: float = 0.0
    aim: float = 0.5
    rows: int = 64
    block: int = 64

    @property
    def scale(self) -> float:
        return self.a * math.exp(self.b * (1 - self.aim))

    def attend(self, q: Query, k: Key, budget: Budget) -> Keep:
        below, best = self._tiles(q, k)
        own = newest(q, k.shape[2], self)[:, None] == torch.arange(below.shape[-1], device=q.device)
        least = min(0.0, math.log(max(self.scale, 1e-30) / k.shape[2]))  # the greatest so far is never skipped
        near = (below >= least) | own
        keep = reads(best, q, k.shape[1:3], budget, self)
        if keep.shape[1] < near.shape[1]:  # one query: its group reads together
            near = near.unflatten(1, (keep.shape[1], -1)).any(2)
        return keep & near

    def fit(self, q: Query, k: Key) -> Pattern:
        """log scale on a line over the share of tiles passed over, by least squares; itself where too little can be passed over."""
        below, _ = self._tiles(q, k)
        tiles = below[below > -torch.inf].double()
        gone = torch.stack([(tiles < least).double().mean() for least in TRIALS.tolist()])
        some = (gone >= FITTED[0]) & (gone <= FITTED[1])
        if int(some.sum()) < 2:
            return self
        x, y = gone[some], TRIALS[some] + math.log(k.shape[2])
        b = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
        return replace(self, a=float((y.mean() - b * x.mean()).exp()), b=float(b))

    def _tiles(self, q: Query, k: Key) -> tuple[Score, Score]:
        """How far a tile's best score lies below the greatest so far, and below a row's greatest: for its best query."""
        parts = list(self._rows(q, k))
        so_far = torch.stack([(m - m.cummax(-1).values).amax(2) for m in parts], 2)
        of_all = torch.stack([(m - m.amax(-1, keepdim=True)).amax(2) for m in parts], 2)
        return so_far, of_all

    def _rows(self, q: Query, k: Key) -> Iterator[Float[Tensor, "batch heads rows k_blocks"]]:
        """Each query's best score in each block of keys, a block of queries at a time."""
        queries, keys = q.shape[2], k.shape[2]
        place = torch.arange(keys, device=q.device)
        for first in range(0, queries, self.rows):
            some = q[:, :, first : first + self.rows]
            now = torch.arange(first, first + some.shape[2], device=q.device)[:, None] + keys - queries
            said = dots(some.float(), k.float()).masked_fill(place > now, -torch.inf)
            said = torch.nn.functional.pad(said, (0, -keys % self.block), value=-torch.inf)
            yield said.unflatten(-1, (-1, self.block)).amax(-1)
