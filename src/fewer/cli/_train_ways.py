"""The ways in which `fewer train features/...` learns: for the site, for the model's predictions, for another's error."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewer.features import Dictionary
from fewer.models import Tap
from fewer.train import Aim, Ce, Kl, Lesson, Live, Pupil, Windows, learn, learn_boost, learn_through

from . import _train_dictionary as front

AIMS: Mapping[str, Callable[[], Aim]] = {"kl": Kl, "ce": Ce}
Told = Callable[[Any], None]


@dataclass(frozen=True, eq=False)
class Said:
    """A model on two texts: one to learn from, one to settle on."""

    model: nn.Module
    taps: Mapping[Tap, int]
    text: Tensor
    later: Tensor
    leave: frozenset[int]
    seed: int
    force: bool

    @property
    def sites(self) -> dict[str, int]:
        return {str(tap): width for tap, width in self.taps.items()}

    def live(self) -> list[Live]:
        """What the sites say of both."""
        return [
            Live(self.model, [*self.taps], some, front.BATCH, self.leave, seed=self.seed)
            for some in (self.text, self.later)
        ]

    def windows(self) -> list[Windows]:
        """Both as windows, as many at a time as a step has tokens."""
        at_once = max(1, front.BATCH // self.text.shape[1])
        return [Windows(some, min(at_once, len(some)), self.seed) for some in (self.text, self.later)]


class Way(ABC):
    """How a dictionary is learnt."""

    def at_sites(self, wanted: "front.Wanted") -> "front.Wanted":
        """With the sites that it brings itself. By default none."""
        return wanted

    @abstractmethod
    def learnt(
        self, pupils: Sequence[Pupil], said: Said, lesson: Lesson, out: Path, told: Told, about: Mapping[str, Any]
    ) -> list[Dictionary]:
        """What comes of it."""


class Plain(Way):
    """For what the site says."""

    def learnt(
        self, pupils: Sequence[Pupil], said: Said, lesson: Lesson, out: Path, told: Told, about: Mapping[str, Any]
    ) -> list[Dictionary]:
        source, unseen = said.live()
        return learn(
            pupils, source, lesson, said.sites, out=out, told=told, about=about, unseen=unseen, force=said.force
        )


@dataclass(frozen=True, eq=False)
class Through(Way):
    """For what the model predicts with it."""

    aim: Aim
    start: Dictionary | None

    def learnt(
        self, pupils: Sequence[Pupil], said: Said, lesson: Lesson, out: Path, told: Told, about: Mapping[str, Any]
    ) -> list[Dictionary]:
        windows, unseen = said.windows()
        rest = (self.aim, lesson, self.start, said.leave, out, told, about, unseen, said.force)
        return [learn_through(pupil, said.model, windows, *rest) for pupil in pupils]


@dataclass(frozen=True, eq=False)
class Boost(Way):
    """For what another dictionary misses."""

    base: Dictionary

    def at_sites(self, wanted: "front.Wanted") -> "front.Wanted":
        return replace(wanted, reads=self.base.reads, writes=self.base.writes)

    def learnt(
        self, pupils: Sequence[Pupil], said: Said, lesson: Lesson, out: Path, told: Told, about: Mapping[str, Any]
    ) -> list[Dictionary]:
        source, unseen = said.live()
        return [learn_boost(self.base, pupil, source, lesson, out, told, about, unseen, said.force) for pupil in pupils]
