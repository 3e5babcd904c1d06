"""Statistics of what a map says, and of the map taken apart."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .crew import Crew
from .stats import Stat, zeros


@dataclass
class OutputSizes(Stat):
    """The mean size of every output of the map, without its bias.

    >>> from fewer.calibrate import observe
    >>> observe((OutputSizes,), torch.tensor([[1.0], [-2.0]]), torch.tensor([[3.0], [-1.0]]))[OutputSizes].value
    tensor([2., 4.])
    """

    w: Float[Tensor, "out in"]
    value: Float[Tensor, " out"]
    tokens: int = 0
    of_map: ClassVar[bool] = True

    @classmethod
    def of(cls, w: Float[Tensor, "out in"]) -> "OutputSizes":
        return cls(w.detach().float(), zeros(w, w.shape[0]))

    def see(self, x: Float[Tensor, "tokens in"]) -> None:
        self.tokens += len(x)
        self.value.lerp_((x @ self.w.mT).abs().mean(0), len(x) / self.tokens)

    def merge(self, crew: Crew) -> None:
        self.value, self.tokens = crew.mean(self.value, self.tokens)


@dataclass
class Factors(Stat):
    """The singular value decomposition of the weight, `W = left diag(sizes) right`, the largest sizes first.

    >>> from fewer.calibrate import observe
    >>> observe((Factors,), torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.ones(1, 2))[Factors].sizes
    tensor([3., 2.])
    """

    left: Float[Tensor, "out least"]
    sizes: Float[Tensor, " least"]
    right: Float[Tensor, "least in"]
    of_input: ClassVar[bool] = False

    @classmethod
    def of(cls, w: Float[Tensor, "out in"]) -> "Factors":
        return cls(*torch.linalg.svd(w.detach().float(), full_matrices=False))
