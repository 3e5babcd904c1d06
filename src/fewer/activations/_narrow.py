"""A network of two layers, narrow between them, as both predictors of hidden neurons have it."""

from typing import ClassVar

import torch
from torch import Generator, Tensor

from fewer.activations import Hidden, Named, Predictor
from fewer.calibrate import Stats


class Narrow(Predictor):
    """score = B relu(A x) + b: A [rank, width] by the name of `reads`, B [neurons, rank]."""

    reads: ClassVar[str] = "reads"
    rank: int

    def begin(self, reads: int, neurons: int, make: Generator) -> dict[str, Tensor]:
        return {
            self.reads: torch.randn(self.rank, reads, generator=make) / reads**0.5,
            "says": torch.randn(neurons, self.rank, generator=make) * 0.1 / self.rank**0.5,
            "bias": torch.zeros(neurons),
        }

    def score(self, x: Hidden, stats: Stats) -> Named:
        return (x @ self.part(self.reads, x).mT).relu() @ self.part("says", x).mT + self.part("bias", x)
