"""A number and how sure we are of it: 95 % intervals, said how."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """`value`, its 95 % interval `low` to `high`, and the number `n` of independent pieces (windows, questions) behind
    it.

    >>> print(Estimate(6.3, 6.25, 6.35, 32)), print(Estimate(0.96, 0.87, 0.98, 50))
    6.300 ± 0.050
    0.960 [0.870, 0.980]
    (None, None)
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        width = (self.high - self.low) / 2
        if not math.isfinite(width):
            return f"{self.value:.4g}"
        if width == 0:
            return f"{self.value:.6g} ± 0"
        digits = min(12, max(0, 1 - math.floor(math.log10(width))))  # two digits of the uncertainty
        if abs(self.high + self.low - 2 * self.value) <= 0.1 * width:
            return f"{self.value:.{digits}f} ± {width:.{digits}f}"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


@dataclass(frozen=True)
class Score:
    """An estimate that knows its name and which way is better.

    >>> print(Score("fvu", Estimate(0.25, 0.2, 0.3, 8), higher_is_better=False))
    fvu 0.250 ± 0.050 (lower is better)
    """

    name: str
    estimate: Estimate
    higher_is_better: bool

    @property
    def value(self) -> float:
        return self.estimate.value

    def __str__(self) -> str:
        return f"{self.name} {self.estimate} ({'higher' if self.higher_is_better else 'lower'} is better)"


def mean(x: Float[Tensor, " n"]) -> Estimate:
    """The mean of independent pieces with Student's interval, `mean ± t(n - 1) * s / sqrt(n)`; endless for one piece.

    >>> import torch
    >>> mean(torch.tensor([1.0, 2.0, 3.0]))  # s = 1, t(2) = 4.303
    Estimate(value=2.0, low=-0.484..., high=4.484..., n=3)
    """
    n = len(x)
    if n == 0:
        raise ValueError("nothing was measured: give at least one window or one question")
    x = x.double()
    value = x.mean().item()
    half = student(n - 1) * x.std().item() / math.sqrt(n) if n > 1 else math.inf
    return Estimate(value, value - half, value + half, n)


def over_seeds(values: Sequence[float], name: str, higher_is_better: bool) -> Score:
    """One measure of several independent runs: mean and Student's interval over seeds.

    >>> print(over_seeds([0.8, 0.9, 1.0], "mcc", True))
    mcc 0.90 ± 0.25 (higher is better)
    """
    return Score(name, mean(torch.tensor(values, dtype=torch.float64)), higher_is_better)


def ratio(a: Float[Tensor, " n"], b: Float[Tensor, " m"]) -> Estimate:
    """`sum a / sum b` over independent pieces, which may be of different size: loss over loss, error over variance.

    The interval is that of the quotient made linear (Cochran 1977, Sampling Techniques, 6.4): with `d = a - value * b`,
    `value ± t(n - 1) * s(d) * sqrt(n) / |sum b|`; endless for one piece. ValueError: other counts, none, or `sum b` is 0.

    >>> import torch
    >>> ratio(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))  # 4 / 4; d = -1, 1; 12.7 * 1.414 * 1.414 / 4
    Estimate(value=1.0, low=-5.35..., high=7.35..., n=2)
    """
    n = len(a)
    if n == 0 or n != len(b):
        raise ValueError(f"{n} and {len(b)} pieces: a ratio needs as many above as below, and at least one")
    a, b = a.double(), b.double()
    below = b.sum().item()
    if below == 0:
        raise ValueError("a ratio to nothing: what stands below sums to 0")
    value = a.sum().item() / below
    half = student(n - 1) * (a - value * b).std().item() * math.sqrt(n) / abs(below) if n > 1 else math.inf
    return Estimate(value, value - half, value + half, n)


def paired(a: Float[Tensor, " n"], b: Float[Tensor, " m"]) -> Estimate:
    """The mean of `a - b` over the same pieces: far narrower than the difference of two intervals, as the text cancels.

    Of two `nll`s over the same windows it is the difference in nats per token, and its exponential the ratio of
    perplexities. Raises `ValueError` if there are not as many of `b` as of `a`.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} pieces: paired needs the same windows for both")
    return mean(a.double() - b.double())


def jackknife(measure: Callable[[Int[Tensor, " some"]], float], n: int, groups: int = 10) -> Estimate:
    """Any measure of `n` rows, which is told which rows to look at: an F1, an entropy, a correlation.

    Each of `groups` runs of neighbouring rows is left out once (Quenouille 1956; Efron and Tibshirani 1993, ch. 11):
    `value ± t(g - 1) * sqrt((g - 1) / g * sum (m_i - mean(m))^2)`, m_i without group i. ValueError: fewer than two rows.

    >>> jackknife(lambda rows: rows.double().mean().item(), 3, groups=3)  # of 0, 1, 2; without one: 1.5, 1, 0.5
    Estimate(value=1.0, low=-1.48..., high=3.48..., n=3)
    """
    if n < 2:
        raise ValueError(f"{n} rows: an interval needs at least 2")
    rows = torch.arange(n)
    parts = rows.tensor_split(min(groups, n))
    without = torch.tensor([measure(rows[(rows < p[0]) | (rows > p[-1])]) for p in parts], dtype=torch.float64)
    g = len(parts)
    half = student(g - 1) * math.sqrt((g - 1) / g * (without - without.mean()).square().sum().item())
    value = float(measure(rows))
    return Estimate(value, value - half, value + half, n)


def share(right: int, n: int) -> Estimate:
    """A share of yes among `n` answers, with Wilson's interval (Wilson 1927, JASA 22): honest near 0 and 1 as well.

    >>> share(0, 10)
    Estimate(value=0.0, low=0.0, high=0.277..., n=10)
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"{right} right of {n}: need at least one answer, and no more right ones than answers")
    p, z2 = right / n, NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Estimate(p, max(0.0, middle - half) if right else 0.0, min(1.0, middle + half) if right < n else 1.0, n)


@cache
def student(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t: with t = sqrt(f) tan(a), the angle a has density cos(a)^(f-1)."""
    if freedom > 10_000:
        return NormalDist().inv_cdf((1 + LEVEL) / 2)
    angle = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(np.interp(LEVEL * mass[-1], mass, angle))
