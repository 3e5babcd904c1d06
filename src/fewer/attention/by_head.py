"""By head: some heads read by one pattern, some by another."""

import re

import torch

from fewer.attention import Keep, Key, Pattern, Query
from fewer.core import Budget, Paper, method
from fewer.core import budget as read

from ._named import named

_PART = re.compile(r"\s*(?P<method>[\w/]+(?:\(.*\))?)(?:\s+(?P<own>[\d.]+%?))?\s*")
TITLE = "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention"


@method(Paper("2407.02490", TITLE, 2024, ledger=207))
class ByHead(Pattern):
    """Each head of the keys, and its group of queries, has the pattern that it was dealt.

    `parts` names the patterns: "quest | streaming" gives half of the heads each, in turn, which is LServe's (2502.14866) and
    DuoAttention's (2410.10819) division into heads that retrieve and heads that stream. A part may have a budget of its own,
    "quest 2048 | streaming 256": the step's budget is then the most. `deal` says for each head which part it has, as an
    offline search found it, or for each head of the queries; beyond its end they are dealt in turn.

    Differs from the papers: who searches is not here.

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

    @property
    def sparing(self) -> bool:
        return any(own or m.sparing for m, own in self._said())

    def attend(self, q: Query, k: Key, budget: Budget) -> Keep:
        said, kv_heads = self._said(), k.shape[1]
        alone = len(self.deal) > kv_heads  # heads of the queries choose, each for itself
        heads, keep = q.shape[1] if alone else kv_heads, []
        if alone and len(self.deal) != heads:
            raise ValueError(
                f"{self.name}: deal is of {len(self.deal)} heads; there are {kv_heads} of keys and {heads}"
            )
        for h in range(heads):
            m, own = said[self.deal[h] if h < len(self.deal) else h % len(said)]
            some, at = q.shape[1] // heads, h * kv_heads // heads
            mine, keys = q[:, h * some : (h + 1) * some], k[:, at : at + 1]
            part = m.attend(mine, keys, own or budget)
            if own and not budget.whole:
                part = part & m.attend(mine, keys, budget)
            keep.append(part.expand(-1, 1 if q.shape[2] == 1 else some, -1, -1))
        out = torch.cat(keep, 1)
        return out.unflatten(1, (kv_heads, -1)).any(2) if alone and q.shape[2] == 1 else out

    def _said(self) -> list[tuple[Pattern, Budget | None]]:
        """The parts, each with its budget if it has one."""
        forms = [_PART.fullmatch(text) for text in self.parts.split("|")]
        if not all(forms):
            raise ValueError(f"parts={self.parts!r}: write patterns between '|', such as 'quest 2048 | streaming'")
        said = [(named(f["method"], self.rows, self.block), read(f["own"]) if f["own"] else None) for f in forms if f]
        if any(not 0 <= n < len(said) for n in self.deal):
            raise ValueError(f"deal={self.deal}: {len(said)} parts are numbered 0 to {len(said) - 1}")
        return said
