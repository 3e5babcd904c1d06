"""What a person sees while jobs run: rows as they come, how many are left, how long it will take."""

import sys
import time
from typing import TYPE_CHECKING, Any

from ._print import note

if TYPE_CHECKING:
    from fewer.recipe.point import Point


class Live:
    """In a terminal a table that fills under a bar; elsewhere a line for each point. All of it on stderr."""

    def __init__(self, quiet: bool = False):
        self.quiet, self.rows, self.began = quiet, [], time.monotonic()  # type: ignore[var-annotated]
        self.live: Any = None
        self.done = self.total = 0

    def __enter__(self) -> "Live":
        if sys.stderr.isatty() and not self.quiet:
            from rich.console import Console
            from rich.live import Live as Screen

            self.console = Console(stderr=True)
            self.live = Screen(self, console=self.console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def found(self, point: "Point") -> None:
        self.rows.append(point.as_dict())

    def progress(self, label: str, done: int, total: int) -> None:
        self.done, self.total = done, total
        if not self.live and not self.quiet:
            row = self.rows[-1]
            said = row["error"] or f"perplexity {row['perplexity']:.4g}, KL {row['kl']:.4g}"
            note(f"[{done}/{total}] {label}: {said}{self._left()}")

    def _left(self) -> str:
        spent = time.monotonic() - self.began
        if not self.done or self.done == self.total or spent < 5:
            return ""
        return f", about {clock(spent / self.done * (self.total - self.done))} left"

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        from fewer.report import show

        room = max(3, self.console.height - 6)
        bar = ProgressBar(total=self.total or None, completed=self.done, width=48)
        spent = clock(time.monotonic() - self.began)
        words = f"{self.done} of {self.total} points, {spent}{self._left()}" if self.total else "reading model and text"
        parts: list[Any] = [show(self.rows[-room:])] if self.rows else []
        return Group(*parts, Text(), bar, Text(words, style="dim"))


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
