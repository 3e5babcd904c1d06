"""The size of gradients: what is left of those that point in opposite ways."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .stats import Stat


@dataclass
class GradSizes(Stat):
    """The mean of every weight's |gradient|, one gradient a window.

    >>> from fewer.calibrate import observe
    >>> w, grads = torch.ones(1, 2), torch.tensor([[[1.0, 4.0]], [[3.0, -4.0]]])
    >>> observe((GradSizes,), w, torch.ones(1, 2), grads)[GradSizes].value
    tensor([[2., 4.]])
    """

    value: Float[Tensor, "out in"]
    windows: int = 0
    of_input: ClassVar[bool] = False

    @classmethod
    def of(cls, w: Float[Tensor, "out in"]) -> "GradSizes":
        return cls(torch.zeros(w.shape, dtype=torch.float32, device=w.device))

    def see_grad(self, grad: Float[Tensor, "out in"]) -> None:
        self.windows += 1
        self.value.lerp_(grad.abs(), 1 / self.windows)
