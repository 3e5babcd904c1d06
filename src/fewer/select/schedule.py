"""Budgets over time: what may stay at each training step, as values."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from fractions import Fraction

from fewer.core import Budget


class Schedule(ABC):
    """A budget for every step."""

    @abstractmethod
    def at(self, step: int) -> Budget:
        """What may stay at this step."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same always.

    >>> from fewer.core.budget import budget
    >>> print(Constant(budget("50%")).at(7))
    50%
    """

    budget: Budget

    def at(self, step: int) -> Budget:
        return self.budget


@dataclass(frozen=True)
class Steps(Schedule):
    """One budget after another: each holds from its step until the next one's; the first holds before, too.

    >>> from fewer.core.budget import budget
    >>> plan = Steps(((0, budget("100%")), (10, budget("50%")), (20, budget("2:4"))))
    >>> [str(plan.at(step)) for step in (0, 9, 10, 25)]
    ['100%', '100%', '50%', '2:4']
    """

    stages: tuple[tuple[int, Budget], ...]

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.stages]
        if not starts or starts != sorted(set(starts)):
            raise ValueError(f"stages begin at steps that rise, not at {starts}")

    def at(self, step: int) -> Budget:
        reached = [budget for start, budget in self.stages if start <= step]
        return reached[-1] if reached else self.stages[0][1]


@dataclass(frozen=True)
class Between(Schedule):
    """From one budget at step `begin` to another at step `end`; constant before and after. How, `mix` says."""

    first: Budget
    last: Budget
    end: int
    begin: int = 0

    def __post_init__(self) -> None:
        if not self.begin < self.end:
            raise ValueError(f"a schedule ends after it begins, not at {self.end} after {self.begin}")
        if type(self.first.keep) is not type(self.last.keep) or replace(self.first, keep=self.last.keep) != self.last:
            raise ValueError(f"nothing lies between '{self.first}' and '{self.last}': only the amount may differ")

    @abstractmethod
    def mix(self, a: Fraction, b: Fraction, t: Fraction) -> Fraction:
        """The amount when the share `t` of the time has passed, a at 0 and b at 1."""

    def at(self, step: int) -> Budget:
        if step <= self.begin or step >= self.end:
            return self.first if step <= self.begin else self.last
        t = Fraction(step - self.begin, self.end - self.begin)
        amount = self.mix(Fraction(self.first.keep), Fraction(self.last.keep), t)
        return replace(self.first, keep=amount if isinstance(self.first.keep, Fraction) else int(amount))


@dataclass(frozen=True)
class Linear(Between):
    """keep = a + (b - a) t, exactly.

    >>> from fewer.core.budget import budget
    >>> print(Linear(budget("100%"), budget("50%"), end=4).at(1))
    87.5%
    """

    def mix(self, a: Fraction, b: Fraction, t: Fraction) -> Fraction:
        return a + (b - a) * t


@dataclass(frozen=True)
class Cubic(Between):
    """keep = b + (a - b) (1 - t)^3, exactly: fast while much is spare. Zhu and Gupta 2017 (1710.01878), eq. 1.

    >>> from fewer.core.budget import budget
    >>> print(Cubic(budget("100%"), budget("20%"), end=100).at(50))
    30%
    """

    def mix(self, a: Fraction, b: Fraction, t: Fraction) -> Fraction:
        return b + (a - b) * (1 - t) ** 3


@dataclass(frozen=True)
class Cosine(Between):
    """keep = b + (a - b) (1 + cos(pi t)) / 2: slow at both ends.

    >>> from fewer.core.budget import budget
    >>> print(Cosine(budget("100%"), budget("20%"), end=100).at(50))
    60%
    """

    def mix(self, a: Fraction, b: Fraction, t: Fraction) -> Fraction:
        return b + (a - b) * _rational((1 + math.cos(math.pi * t)) / 2)


@dataclass(frozen=True)
class Exponential(Between):
    """keep = a (b / a)^t: each step keeps the same share of what the last one kept (Han et al. 2015, 1506.02626).

    >>> from fewer.core.budget import budget
    >>> print(Exponential(budget("100%"), budget("25%"), end=2).at(1))
    50%
    """

    def mix(self, a: Fraction, b: Fraction, t: Fraction) -> Fraction:
        return a * _rational((b / a) ** float(t))


def _rational(x: float) -> Fraction:
    """The simplest fraction within rounding of `x`, so that what should be a half is one."""
    return Fraction(x).limit_denominator(10**12)
