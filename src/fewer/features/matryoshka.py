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

    `widths` are shares of the latents, the last one all of them. So what is general lands in the first latents, and what is
    special does not swallow it (feature absorption).

    >>> m = Matryoshka(widths=(0.5, 1.0))
    >>> [(weight, part.dense().tolist()) for weight, part in m.views(Codes(torch.tensor([[0, 3]]), torch.tensor([[1.0, 2.0]]), 4))]
    [(0.5, [[1.0, 0.0, 0.0, 0.0]]), (0.5, [[1.0, 0.0, 0.0, 2.0]])]
    """

    widths: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.widths, self.widths[1:], strict=False))
        if not self.widths or self.widths[0] <= 0 or not rising or self.widths[-1] != 1:
            raise ValueError(f"widths={self.widths}: write rising shares of the latents that end with 1.0")

    def keep(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Keep:
        return of_batch(pre, budget)

    def serve(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return above(pre, own) if "threshold" in own else self.code(pre, budget)

    def settle(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> dict[str, Tensor]:
        return fitted(pre, budget)

    def views(self, codes: Codes) -> Iterator[tuple[float, Codes]]:
        for share in self.widths:
            inside = codes.index < int(share * codes.size)
            yield 1 / len(self.widths), replace(codes, value=codes.value * inside)
