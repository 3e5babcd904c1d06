"""What a person sees who waits: what is done, and the time left; in a terminal a bar, elsewhere a line now and then. On stderr."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from ._print import note

EVERY = 10  # seconds between two lines
UNSURE = 5  # seconds before which nothing is said of the time left: kernels may have been compiled in the first step

Told = Callable[..., None]  # done, of how many, and more words


class Bar:
    """Each call names some work, and gives what is to be told how far it is: `told(done, total, words="")`."""

    def __init__(self, quiet: bool):
        self.quiet, self.shown = quiet, None if quiet or not sys.stderr.isatty() else shown()

    def __enter__(self) -> "Bar":
        if self.shown:
            self.shown.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.shown:
            self.shown.stop()

    def __call__(self, what: str) -> Told:
        task = self.shown.add_task(what, total=None) if self.shown else None
        pace, said = Pace(), time.monotonic()

        def told(done: int, total: int, words: str = "") -> None:
            nonlocal said
            pace.at(done, total)
            now = f"{what}: {words}" if words else what
            if self.shown:
                self.shown.update(task, completed=done, total=total, description=now)
            elif not self.quiet and (time.monotonic() - said > EVERY or done == total):
                said = time.monotonic()
                note(f"[{done}/{total}] {now}{pace.left}")

        return told


class Pace:
    """How fast it goes since it was first heard of: a run that goes on where it was killed is no faster for that."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None
        self.left = ""

    def at(self, done: int, total: int) -> None:
        """`left` says in words how long the rest will take, if that is known."""
        now = time.monotonic()
        self.first = self.first or (now, done)
        spent, made = now - self.first[0], done - self.first[1]
        self.left = f", about {clock(spent / made * (total - done))} left" if spent > UNSURE and done < total else ""


def loss(told: Told) -> Callable[[Mapping[str, Any]], None]:
    """What hears the rows of a run that learns: the loss is smoothed."""
    smooth: float | None = None

    def heard(row: Mapping[str, Any]) -> None:
        nonlocal smooth
        smooth = row["loss"] if smooth is None else smooth + 0.05 * (row["loss"] - smooth)
        told(row["step"], row["steps"], f"loss {smooth:.4f}")

    return heard


def both(
    one: Callable[[Mapping[str, Any]], None] | None, other: Callable[[Mapping[str, Any]], None]
) -> Callable[[Mapping[str, Any]], None]:
    """What tells two of a row; of none and another, the other."""

    def heard(row: Mapping[str, Any]) -> None:
        if one:
            one(row)
        other(row)

    return heard


def shown(console: Any = None) -> Any:
    """The bar of a terminal, by default that of stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console or Console(stderr=True))


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
