"""Matryoshka: the first latents must explain the input by themselves, all of them together better."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByKeep, Codes, Keep, Own, Pre

from ._pooled import above, fitted, of_batch


@method(Paper("2503.17547", "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", 2025))
class Matryoshka(ByKeep):
    """BatchTopK, whose codes must explain the input at each of several nested widths: the mean of their errors (eq. 5).

    The widths are all latents, half of them, a quarter ..., `levels` in number. So what is general lands in the first latents, and what is
    special does not swallow it (feature absorption).

    >>> m = Matryoshka(levels=2)
    >>> [(weight, part.dense().tolist()) for weight, part in m.views(Codes(torch.tensor([[0, 3]]), torch.tensor([[1.0, 2.0]]), 4))]
    [(0.5, [[1.0, 0.0, 0.0, 0.0]]), (0.5, [[1.0, 0.0, 0.0, 2.0]])]
    """

    levels: int = 5

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels={self.levels}: write at least 1, which is all latents at once")

    def keep(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Keep:
        return of_batch(pre, budget)

    def serve(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return above(pre, own) if "threshold" in own else self.code(pre, budget)

    def settle(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> dict[str, Tensor]:
        return fitted(pre, budget)

    def views(self, codes: Codes) -> Iterator[tuple[float, Codes]]:
        for level in reversed(range(self.levels)):
            inside = codes.index < codes.size >> level
            yield 1 / self.levels, replace(codes, value=codes.value * inside)
