"""Learning rates over a run, as values."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class Rate(ABC):
    """A number for each share of the run that has passed."""

    @abstractmethod
    def at(self, progress: float) -> float:
        """At `progress`, 0 at the first step and 1 at the last."""


@dataclass(frozen=True)
class Flat(Rate):
    """The same always.

    >>> Flat(0.1).at(0.7)
    0.1
    """

    value: float

    def at(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(Rate):
    """From `first` to `last` in a straight line.

    >>> Linear(1.0, 0.0).at(0.25)
    0.75
    """

    first: float
    last: float

    def at(self, progress: float) -> float:
        return self.first + (self.last - self.first) * progress


@dataclass(frozen=True)
class Cosine(Rate):
    """From `first` to `last` along half a cosine, slow at both ends; before that, up from 0 for a share `warm` of the run.

    >>> Cosine(1.0, 0.0).at(0.5), Cosine(1.0, 0.0, warm=0.1).at(0.05)
    (0.5, 0.5)
    """

    first: float
    last: float
    warm: float = 0.0

    def at(self, progress: float) -> float:
        if progress < self.warm:
            return self.first * progress / self.warm
        t = (progress - self.warm) / (1 - self.warm) if self.warm < 1 else 1.0
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * t)) / 2


@dataclass(frozen=True)
class Trapezoid(Rate):
    """Up from 0 for a share `warm` of the run, flat, and down to 0 over the last share `fall`.

    >>> rate = Trapezoid(1.0, warm=0.1, fall=0.2)
    >>> rate.at(0.05), rate.at(0.5), round(rate.at(0.9), 6)
    (0.5, 1.0, 0.5)
    """

    value: float
    warm: float = 0.0
    fall: float = 0.2

    def at(self, progress: float) -> float:
        up = progress / self.warm if progress < self.warm else 1.0
        down = (1 - progress) / self.fall if 1 - progress < self.fall else 1.0
        return self.value * min(up, down)
