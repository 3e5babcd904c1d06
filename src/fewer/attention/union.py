"""Union: several patterns by place at once."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score
from fewer.core import Paper, method

from ._named import named


@method(Paper("2007.14062", "Big Bird: Transformers for Longer Sequences", 2020, ledger=231))
class Union(ByPlace):
    """Read what any of several patterns by place reads, the best of each in turn until the budget is spent.

    `parts` names them: "streaming + strided(stride=16)". A block's rank is the best that a part gives it; of equal ones the
    earlier block is read. A part's own `rows` and `block` are not asked.

    Differs from the paper: it unites three patterns of its own; here any.

    >>> m = Union("dilated(gap=3) + streaming(sinks=0)")
    >>> m.score_places(torch.tensor([4]), 5, 1)  # 4 1 and 4 3 2 1 0 in turn
    tensor([[[[-4., -1., -2., -1., -0.]]]])
    """

    parts: str = "streaming + strided"
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        future = torch.arange(blocks, device=now.device) > now[:, None]
        best = torch.full((1, heads, len(now), blocks), torch.inf, device=now.device)
        for m in self._parts():
            score = m.score_places(now, blocks, heads).expand(best.shape).masked_fill(future, -torch.inf)
            rank = score.argsort(dim=-1, descending=True, stable=True).argsort(-1)
            best = torch.minimum(best, torch.where(score.isfinite(), rank, torch.inf))
        return -best

    def _parts(self) -> list[ByPlace]:
        """ValueError: a part that is no pattern by place."""
        found = []
        for text in self.parts.split(" + "):
            m = named(text, self.rows, self.block)
            if not isinstance(m, ByPlace):
                raise ValueError(f"{text!r} looks at what is there: a union is of patterns by place, as 'streaming' is")
            found.append(m)
        return found
