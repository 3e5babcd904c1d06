"""By head: some heads read by one pattern, some by another."""

import torch

from fewer.attention import Keep, Key, Pattern, Query
from fewer.core import Budget, Paper, method

from ._named import named

TITLE = "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention"


@method(Paper("2407.02490", TITLE, 2024, ledger=207))
class ByHead(Pattern):
    """Each head of the keys, and its group of queries, has the pattern that it was dealt.

    `parts` names the patterns: "quest | streaming" gives half of the heads each, in turn, which is LServe's (2502.14866) and
    DuoAttention's (2410.10819) division into heads that retrieve and heads that stream. `deal` says for each head which part
    it has, as an offline search found it; beyond its end they are dealt in turn.

    Differs from the papers: who searches is not here; all heads have the same budget, unless it is divided over them.

    >>> q, k = torch.zeros(1, 2, 6, 1), torch.zeros(1, 2, 6, 1)
    >>> keep = ByHead("streaming | streaming(sinks=0)", rows=2, block=2).attend(q, k, budget("4"))
    >>> keep[0, :, -1]  # first and last; the last two
    tensor([[ True, False,  True],
            [False,  True,  True]])
    """

    parts: str = "streaming | quest"
    deal: tuple[int, ...] = ()
    rows: int = 64
    block: int = 64

    def attend(self, q: Query, k: Key, budget: Budget) -> Keep:
        found = [named(text, self.rows, self.block) for text in self._said()]
        group = q.shape[1] // k.shape[1]
        keep = []
        for h in range(k.shape[1]):
            m = found[self.deal[h] if h < len(self.deal) else h % len(found)]
            mine = m.attend(q[:, h * group : (h + 1) * group], k[:, h : h + 1], budget)
            keep.append(mine.expand(-1, 1 if q.shape[2] == 1 else group, -1, -1))
        return torch.cat(keep, 1)

    def _said(self) -> list[str]:
        said = [text.strip() for text in self.parts.split("|")]
        if any(not 0 <= part < len(said) for part in self.deal):
            raise ValueError(f"deal={self.deal}: {len(said)} parts are numbered 0 to {len(said) - 1}")
        return said
