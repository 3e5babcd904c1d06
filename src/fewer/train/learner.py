"""What every way of learning promises: data in, a new method out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Generic, TypeVar

from torch import Tensor

from fewer.core import Budget, Method

M = TypeVar("M", bound=Method)


class Learner(ABC, Generic[M]):
    """How a method is fitted to data; a frozen dataclass whose fields are the settings of the training run."""

    @abstractmethod
    def fit(self, method: M, budget: Budget, batches: Iterable[Tensor]) -> M:
        """A new method of the same class that carries what was learnt; `method` itself is left as it was.

        The same learner, method, budget and batches give the same result. Raises `ValueError` if `method` has nothing
        to learn, or if the batches end before the first step.
        """
