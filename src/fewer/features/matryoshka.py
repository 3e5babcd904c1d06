"""Matryoshka: dictionaries inside a dictionary."""

from collections.abc import Iterator

from fewer.core import Paper, method
from fewer.features import ByBatch
from fewer.layout import Codes


@method(
    Paper("2503.17547", "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", 2025, equation="sec. 3.1")
)
class Matryoshka(ByBatch):
    """BatchTopK whose first latents alone must explain the input too: the mean of the errors of several widths.

    `widths` are shares of all latents. So the first learn what is general, and are not absorbed by the special that follow.

    Differs from the paper: the mean of the errors, not their sum; the threshold is BatchTopK's here.

    >>> from fewer.layout import Codes
    >>> codes = Codes(torch.tensor([[0, 3]]), torch.tensor([[2.0, 3.0]]), 4)
    >>> [(w, part.value.tolist()) for w, part in Matryoshka((0.5, 1.0)).views(codes)]
    [(0.5, [[2.0, 0.0]]), (0.5, [[0.0, 3.0]])]
    """

    widths: tuple[float, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)

    def __post_init__(self) -> None:
        if not self.widths or not all(0 < share <= 1 for share in self.widths):
            raise ValueError(f"widths={self.widths}: give shares of all latents, above 0 and up to 1")

    def ends(self, latents: int) -> list[int]:
        """Where the dictionaries inside end."""
        return sorted({max(1, round(latents * share)) for share in self.widths} | {latents})

    def views(self, codes: Codes) -> Iterator[tuple[float, Codes]]:
        ends = self.ends(codes.size)
        for first, end in zip([0, *ends], ends, strict=False):
            inside = (codes.index >= first) & (codes.index < end)
            yield 1 / len(ends), Codes(codes.index, codes.value.masked_fill(~inside, 0), codes.size)
