"""The rows of a run as TensorBoard shows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """Told each step of a run, writes its numbers as events in a directory: `learn(..., told=Board("runs/a"))`.

    A run that goes on where it was killed replaces what was written of later steps. ImportError: TensorBoard is not installed.
    """

    def __init__(self, place: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as wrong:
            raise ModuleNotFoundError("events for TensorBoard need it: pip install 'fewer[board]'") from wrong
        if Path(place).exists() and not Path(place).is_dir():
            raise ValueError(f"{place} is no directory to write events in")
        self.place, self.open, self.writer = str(place), SummaryWriter, None

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Whatever in a row is a number, by its name; `step` says when."""
        self.writer = self.writer or self.open(self.place, purge_step=row["step"])
        for name, value in row.items():
            if name not in ("step", "steps"):
                self.writer.add_scalar(name, value, row["step"])
        if row["step"] == row["steps"]:
            self.writer.flush()

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer:
            self.writer.close()
