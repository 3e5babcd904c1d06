"""Several processes, each with its share of every batch; all hold the whole dictionary, and take the same steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer import kernels
from fewer.calibrate import Crew
from fewer.core import Budget
from fewer.features import NOTHING, ByBatch, ByKeep, Keep, Own, Pre, Sparsifier, coded, total
from fewer.layout import Codes
from fewer.select import select

from .pupil import Lesson, Pupil
from .rows import Use, together
from .sharing import Sharing
from .source import Source


@dataclass(frozen=True)
class ByRows(Sharing):
    """Each process codes its rows of each batch; then all know who used which row of a matrix, and all do the same with it.

    Gradients of the two large matrices are put together in the cheaper of two ways, told apart by counting bytes. All uses
    are gathered: a process hears batch * (8 k + 4 dim) of them (half of dim's in bfloat16), a use being k places, k values
    and one row; the update is then the one of a single process. Or each writes its gradient down, and those are summed:
    2 * 4 * latents * dim bytes. With 64 of 24576 latents, 768 columns and 4096 rows that is 15 MB or 151 MB a matrix and step;
    from some 40 000 rows on, sums are cheaper. Beside this go the biases' gradients, 4 bytes a latent to know who spoke, and one
    number.

    A choice within the whole batch (`ByBatch`) is made within it: processes tell each other the scores that could be among the
    best, 4 batch k bytes each, and each learns how many of its own are. Other rules that look at more than a row are refused. Only
    what a rule draws at random is not what one process draws.
    """

    crew: Crew

    def check(self, pupils: Sequence[Pupil], lesson: Lesson, batch: int, together: bool) -> None:
        if batch % self.crew.size:
            raise ValueError(f"batches of {batch} rows cannot be dealt out evenly to {self.crew.size} processes")
        for m, kept in ((pupil.sparsifier, pupil.budget) for pupil in pupils):
            known = isinstance(m, ByKeep) and (m.alone or type(m).keep is ByBatch.keep) and kept.scope == "row"
            if not known or m.looks or type(m).penalty is not Sparsifier.penalty:
                raise ValueError(
                    f"{m.name} '{kept}' looks at whole batches, of which a process sees a share: learn it in one, or take a rule that chooses row by row, such as features/top_k, or features/batch_top_k"
                )

    def read(self, source: Source) -> Source:
        return source.share(self.crew.rank, self.crew.size)

    def coded(self, m: ByKeep, budget: Budget, x: Tensor, w: Tensor, b: Tensor, own: Own) -> Codes:
        return coded(m if m.alone else _OfAll(m, self.crew), budget, x, w, b, own)[0]

    def heard(self, counts: Tensor, tokens: int) -> tuple[Tensor, int]:
        return self.crew.sum(counts), tokens * self.crew.size

    def mean(self, part: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return self.crew.sum(part) / self.crew.size

    def loss(self, part: Float[Tensor, ""]) -> Float[Tensor, ""]:
        part = part / self.crew.size
        return part + (self.crew.sum(part.detach()) - part.detach())

    def join(self, parameters: Mapping[str, Tensor]) -> None:
        learnt = [p for p in parameters.values() if p.requires_grad]
        slots = [codes.index.shape[1] for p in learnt for codes, _ in getattr(p, "owed", ())]
        widest = iter(self.crew.stack(torch.tensor(slots, dtype=torch.int64)).amax(0).tolist() if slots else ())
        for p in learnt:
            if uses := getattr(p, "owed", None):
                _join_uses(p, uses, [next(widest) for _ in uses], self.crew)
            elif p.grad is not None:
                p.grad = self.crew.sum(p.grad)


def _join_uses(p: Tensor, uses: list[Use], widest: list[int], crew: Crew) -> None:
    if _bytes(p, uses, widest, crew.size) <= 2 * p.numel() * p.element_size():
        uses[:] = [_gathered(use, k, crew) for use, k in zip(uses, widest, strict=True)]
    else:
        codes, y = together(uses)
        p.grad = crew.sum(kernels.collect(codes, y.to(p.dtype)))
        uses.clear()


def _bytes(p: Tensor, uses: list[Use], widest: list[int], size: int) -> int:
    """What a process hears if all uses are told."""
    each = (
        (4 + codes.value.element_size()) * k * len(y) + y.numel() * y.element_size()
        for (codes, y), k in zip(uses, widest, strict=True)
    )
    return size * sum(each)


def _gathered(use: Use, k: int, crew: Crew) -> Use:
    """The uses of all processes, in the order of the rows of the batch."""
    codes, y = use
    index, value = (F.pad(t, (0, k - t.shape[1])) for t in (codes.index.int(), codes.value))
    places, amounts, rows = (crew.stack(t).flatten(0, 1) for t in (index, value, y))
    return Codes(places.long(), amounts, codes.size), rows


class _OfAll(ByKeep):
    """A choice within a batch of which other processes hold the rest."""

    def __init__(self, m: ByKeep, crew: Crew):
        self.m, self.crew = m, crew

    def amount(self, pre: Float[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
        return self.m.amount(pre)

    def keep(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Keep:
        """Each process keeps as many of its best as are among the best of all; of equals, first those of earlier rows."""
        score = self.m.score(pre)
        n = total(budget, pre) * self.crew.size
        best = self.crew.stack(score.flatten().topk(min(n, score.numel())).values)
        least = best.flatten().topk(n).values[-1]
        above, equal = (best > least).sum(1).tolist(), (best == least).sum(1).tolist()
        left = n - sum(above) - sum(equal[: self.crew.rank])
        mine = above[self.crew.rank] + max(0, min(left, equal[self.crew.rank]))
        return select(score, budget.with_count(mine)) if mine else torch.zeros_like(score, dtype=torch.bool)
