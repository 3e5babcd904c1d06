"""The ways in which `fewer train features/...` learns: for the site, for the model's predictions, for another's error."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewer.features import Dictionary
from fewer.train import Aim, Ce, Kl, Lesson, Pupil, learn, learn_boost, learn_through
from fewer.train.sharing import ALONE, Sharing

from ._train_source import Stream

if TYPE_CHECKING:
    from ._train_dictionary import Wanted

AIMS: Mapping[str, Callable[[], Aim]] = {"kl": Kl, "ce": Ce}


@dataclass(frozen=True, eq=False)
class Run:
    """How long, where to, and with whom."""

    lesson: Lesson
    out: Path
    told: Callable[[Any], None]
    force: bool
    by: Sharing


class Way(ABC):
    """How dictionaries are learnt."""

    def at_sites(self, wanted: "Wanted") -> "Wanted":
        """With the sites that it brings itself. By default none."""
        return wanted

    @abstractmethod
    def learnt(self, pupils: Sequence[Pupil], stream: Stream, run: Run) -> list[Dictionary]:
        """What comes of it."""


class Plain(Way):
    """For what the site says."""

    def learnt(self, pupils: Sequence[Pupil], stream: Stream, run: Run) -> list[Dictionary]:
        rest = {"about": stream.about, "by": run.by, "unseen": stream.unseen, "force": run.force}
        return learn(pupils, stream.source, run.lesson, stream.sites, out=run.out, told=run.told, **rest)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Through(Way):
    """For what the model predicts with it."""

    aim: Aim
    start: Dictionary | None

    def learnt(self, pupils: Sequence[Pupil], stream: Stream, run: Run) -> list[Dictionary]:
        _by_itself(run, "--loss kl or ce")
        if (model := stream.running) is None:
            raise ValueError("--loss kl or ce asks for the model as it runs: leave --store out")
        rest = (run.lesson, self.start, model.leave, run.out, run.told, stream.about, model.later, run.force)
        return [learn_through(pupil, model.model, model.windows, self.aim, *rest) for pupil in pupils]


@dataclass(frozen=True, eq=False)
class Boost(Way):
    """For what another dictionary misses."""

    base: Dictionary

    def at_sites(self, wanted: "Wanted") -> "Wanted":
        return replace(wanted, reads=self.base.reads, writes=self.base.writes)

    def learnt(self, pupils: Sequence[Pupil], stream: Stream, run: Run) -> list[Dictionary]:
        _by_itself(run, "--boost")
        rest = (run.lesson, run.out, run.told, stream.about, stream.unseen, run.force)
        return [learn_boost(self.base, pupil, stream.source, *rest) for pupil in pupils]


def _by_itself(run: Run, option: str) -> None:
    if run.by is not ALONE:
        raise ValueError(f"{option} is learnt in one process: leave torchrun out")


def way_of(wanted: "Wanted") -> Way:
    """How it is learnt. ValueError: options that say two things at once."""
    from fewer.dictionaries import load

    if wanted.keep not in ("error", *AIMS):
        raise ValueError(f"--loss {wanted.keep}: write error, {' or '.join(AIMS)}")
    through = wanted.keep != "error"
    if wanted.begin and not through:
        raise ValueError("--from goes with --loss kl or ce")
    if wanted.seeds > 1 and (through or wanted.boost or wanted.groups):
        raise ValueError("--seeds goes with --loss error, without --boost and --groups")
    if wanted.boost and (through or wanted.reads or wanted.writes or wanted.skip):
        raise ValueError(
            "--boost has the sites of its dictionary, and learns its error: without --site, --to, --skip, --loss"
        )
    if wanted.boost:
        return Boost(load(wanted.boost))
    return Through(AIMS[wanted.keep](), load(wanted.begin) if wanted.begin else None) if through else Plain()
