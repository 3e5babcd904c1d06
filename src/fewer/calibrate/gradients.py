"""What the loss says of every weight: statistics of its gradients, one gradient a window of the data."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from .crew import Crew
from .stats import Stat, zeros


@dataclass
class GradMean(Stat):
    """The mean gradient of the loss by every weight, over all windows, with its sign.

    >>> observe((GradMean,), torch.ones(1, 2), torch.ones(1, 2), torch.tensor([[[1.0, 4.0]], [[3.0, -4.0]]]))[GradMean].value
    tensor([[2., 0.]])
    """

    value: Float[Tensor, "out in"]
    windows: int = 0
    of_input: ClassVar[bool] = False

    @classmethod
    def of(cls, w: Float[Tensor, "out in"]) -> "GradMean":
        return cls(zeros(w, *w.shape))

    def see_grad(self, grad: Float[Tensor, "out in"]) -> None:
        self.windows += 1
        self.value.lerp_(grad, 1 / self.windows)

    def merge(self, crew: Crew) -> None:
        self.value, self.windows = crew.mean(self.value, self.windows)


@dataclass
class GradSquares(Stat):
    """The mean of every weight's squared gradient, one gradient a window: the diagonal of the empirical Fisher.

    >>> w, grads = torch.ones(1, 2), torch.tensor([[[1.0, 4.0]], [[3.0, -4.0]]])
    >>> observe((GradSquares,), w, torch.ones(1, 2), grads)[GradSquares].value
    tensor([[ 5., 16.]])
    """

    value: Float[Tensor, "out in"]
    windows: int = 0
    of_input: ClassVar[bool] = False

    @classmethod
    def of(cls, w: Float[Tensor, "out in"]) -> "GradSquares":
        return cls(zeros(w, *w.shape))

    def see_grad(self, grad: Float[Tensor, "out in"]) -> None:
        self.windows += 1
        self.value.lerp_(grad.square(), 1 / self.windows)

    def merge(self, crew: Crew) -> None:
        self.value, self.windows = crew.mean(self.value, self.windows)


@dataclass
class HessianGradient(Stat):
    """H g by every weight: the Hessian of the mean loss times its gradient, how a step along g changes the gradient.

    H is over all maps together that ask for it (and all windows), not map by map: what GraSP's score is made of.
    Collected exactly, by differentiating twice, with one block in memory.

    >>> w, products = torch.ones(1, 2), torch.tensor([[[1.0, 4.0]], [[3.0, -4.0]]])
    >>> observe((HessianGradient,), w, torch.ones(1, 2), curve=products)[HessianGradient].value
    tensor([[2., 0.]])
    """

    value: Float[Tensor, "out in"]
    windows: int = 0
    of_input: ClassVar[bool] = False

    @classmethod
    def of(cls, w: Float[Tensor, "out in"]) -> "HessianGradient":
        return cls(zeros(w, *w.shape))

    def see_curve(self, product: Float[Tensor, "out in"]) -> None:
        self.windows += 1
        self.value.lerp_(product, 1 / self.windows)

    def merge(self, crew: Crew) -> None:
        self.value, self.windows = crew.mean(self.value, self.windows)
