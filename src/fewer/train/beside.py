"""Several sources side by side: what several models say of the same tokens, for a dictionary that reads all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .source import Source


@dataclass(frozen=True, eq=False)
class Beside(Source):
    """The columns of all sources, in their order; row i of each must be of the same token.

    So it is if all mix the same windows alike: `Beside([Live(a, taps, windows), Live(b, taps, windows)])`, and then
    `learn(pupils, source, sites={"a": width, "b": width})` learns a crosscoder of two models (after Lindsey et al. 2024, Sparse
    Crosscoders). ValueError: sources that are known to mix otherwise, or a batch of another size.

    >>> from fewer.train import Rows
    >>> x = torch.arange(6.0).reshape(3, 2)
    >>> next(iter(Beside([Rows(x, 1), Rows(-x, 1)]))).abs().unique().numel()
    2
    """

    sources: Sequence[Source]

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("there is no source: give at least one")
        for number, one in enumerate(self.sources):
            if one.mixing != self.sources[0].mixing:
                raise ValueError(
                    f"sources 0 and {number} mix otherwise, so that their rows are of other tokens: give all the same windows, batch, seed, pool and tokens to leave out"
                )

    @property
    def mixing(self) -> object:
        return self.sources[0].mixing

    def since(self, number: int) -> Iterator[Tensor]:
        for at, parts in enumerate(zip(*(one.since(number) for one in self.sources), strict=True)):
            if len({len(part) for part in parts}) > 1:
                raise ValueError(
                    f"batch {number + at}: {[len(part) for part in parts]} rows; sources must give as many"
                )
            yield torch.cat([part.to(parts[0].device).float() for part in parts], 1)
