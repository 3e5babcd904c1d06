"""What every way of learning promises: data in, a new method out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar, get_args

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


def learner_of(method: type[Method]) -> Any:
    """The class that teaches methods of this class; `ValueError` if they have nothing to learn."""
    taught = {get_args(base)[0]: cls for cls in Learner.__subclasses__() for base in cls.__orig_bases__}  # type: ignore[attr-defined]
    for known in method.__mro__:
        if known in taught:
            return taught[known]
    there = ", ".join(sorted(getattr(known, "name", f"{known.__module__.split('.')[1]}/...") for known in taught))
    raise ValueError(f"{method.name} has nothing to learn, apply it as it is; what learns: {there}")
