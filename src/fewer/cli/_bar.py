"""What a person sees while something is learnt: steps, loss and time left; in a terminal a bar, elsewhere a line now and then."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from ._live import clock
from ._print import note


class Bar:
    """Hears a row after each step. On stderr."""

    def __init__(self, quiet: bool):
        self.quiet, self.shown, self.said, self.began = quiet, None, 0.0, time.monotonic()
        self.first: int | None = None
        self.smooth = 0.0

    def __enter__(self) -> "Bar":
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.shown = Progress(*columns, console=Console(stderr=True))
            self.task = self.shown.add_task("first step")
            self.shown.start()
        return self

    def __call__(self, row: Mapping[str, Any]) -> None:
        if self.first is None:
            self.first, self.smooth = row["step"] - 1, row["loss"]
        self.smooth += 0.05 * (row["loss"] - self.smooth)
        words = f"loss {self.smooth:.4f}"
        if self.shown:
            self.shown.update(self.task, description=words, completed=row["step"], total=row["steps"])
        elif not self.quiet and (time.monotonic() - self.said > 10 or row["step"] == row["steps"]):
            spent, self.said = time.monotonic() - self.began, time.monotonic()
            left = spent / (row["step"] - self.first) * (row["steps"] - row["step"])
            note(f"[{row['step']}/{row['steps']}] {words}" + (f", about {clock(left)} left" if left >= 1 else ""))

    def __exit__(self, *error: object) -> None:
        if self.shown:
            self.shown.stop()
