"""What a study is: settings, a bench that measures steps, rows and a sentence."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from fewer.core import Paper
from fewer.measure import Estimate, paired
from fewer.recipe.frontier import Bench
from fewer.recipe.point import Point
from fewer.recipe.steps import Step


@dataclass(frozen=True)
class Found:
    """Rows for a table and a picture, and what they say in one sentence.

    `titles` names the columns in order; the picture draws field `y` (with `y_low`, `y_high` if there) over `x`, one
    colour a value of `by`.
    """

    rows: list[dict[str, Any]]
    says: str
    titles: Mapping[str, str]
    x: str
    y: str
    by: str


class Study(ABC):
    """A frozen dataclass whose fields are the settings; what was measured before is not measured again."""

    paper: ClassVar[Paper]

    @abstractmethod
    def ask(self, bench: Bench) -> Found:
        """Measure what is needed and say what it means. ValueError before any work for what the model cannot take."""


def measured(bench: Bench, steps: Sequence[Step | None]) -> list[Point]:
    """The points of the steps; one that failed ends the study, for half a curve would mislead."""
    points = bench.points(steps)
    for point in points:
        if point.error:
            raise RuntimeError(f"{point.step} could not be measured: {point.error}")
    return points


def apart(point: Point, other: Point) -> Estimate:
    """The difference in loss, nats a token, over the same windows."""
    return paired(torch.tensor(point.losses), torch.tensor(other.losses))


def with_interval(field: str, found: Estimate) -> dict[str, float]:
    """An estimate as the fields of a row."""
    return {field: found.value, f"{field}_low": found.low, f"{field}_high": found.high}


def share(x: float) -> str:
    """A share as people write it.

    >>> share(0.305)
    '30.5 %'
    """
    return f"{round(100 * x, 1):g} %"


def quality_of(point: Point) -> float:
    """The perplexity of a point that was measured."""
    assert point.perplexity is not None
    return point.perplexity.value
