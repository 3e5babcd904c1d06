"""What a person sees while jobs run: rows as they come, above the bar of the others."""

import sys
from typing import TYPE_CHECKING, Any

from ._bar import Pace, shown
from ._print import note

if TYPE_CHECKING:
    from fewer.recipe.point import Point


class Live:
    """In a terminal a table that fills above a bar; elsewhere a line for each point. All of it on stderr."""

    def __init__(self, quiet: bool = False):
        self.quiet, self.rows, self.pace = quiet, [], Pace()  # type: ignore[var-annotated]
        self.pace.at(0, 0)
        self.live: Any = None

    def __enter__(self) -> "Live":
        if sys.stderr.isatty() and not self.quiet:
            from rich.live import Live as Screen

            self.begin()
            self.live = Screen(self, console=self.bar.console, refresh_per_second=4, transient=True)
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()

    def begin(self, console: Any = None) -> None:
        self.bar = shown(console)
        self.task = self.bar.add_task("reading model and text", total=None)

    def found(self, point: "Point") -> None:
        self.rows.append(point.as_dict())

    def progress(self, label: str, done: int, total: int) -> None:
        self.pace.at(done, total)
        if self.live:
            self.bar.update(self.task, completed=done, total=total, description="points")
        elif not self.quiet:
            row = self.rows[-1]
            said = row["error"] or _measured(row)
            note(f"[{done}/{total}] {label}: {said}{self.pace.left}")

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        from fewer.report import show

        room = max(3, self.bar.console.height - 6)
        parts: list[Any] = [show(self.rows[-room:])] if self.rows else []
        return Group(*parts, Text(), self.bar)


def _measured(row: dict[str, Any]) -> str:
    if row["accuracy"] is not None:
        return f"{row['accuracy']:.2f} right of {row['questions']}"
    return f"perplexity {row['perplexity']:.4g}, KL {row['kl']:.4g}"
