"""Rows for people (coloured in a terminal, aligned text elsewhere) and for programs (one JSON object a line)."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]  # one point or change, flat, as it stands in the JSON lines


@dataclass(frozen=True)
class Column:
    """A field of the rows, its heading, how a value is written, and what it means."""

    field: str
    title: str
    write: Callable[[Any], str]
    about: str = ""

    def cell(self, row: Row) -> str:
        """The value as people read it, with its interval if the row has one; nothing if it is not there."""
        value = row.get(self.field)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        low, high = row.get(f"{self.field}_low"), row.get(f"{self.field}_high")
        return self.write(value) + (f" [{self.write(low)}, {self.write(high)}]" if low is not None else "")

    @property
    def words(self) -> bool:
        return self.write is str


def number(x: float | int) -> str:
    """Three digits that matter, and no exponent below a million.

    >>> number(6.3049), number(0.01234), number(1843.2), number(4.2e7)
    ('6.30', '0.0123', '1843', '4.2e+07')
    """
    if x == 0 or not math.isfinite(x):
        return f"{x:g}"
    if abs(x) >= 1e6 or abs(x) < 1e-4:
        return f"{x:.2g}"
    return f"{x:.{max(0, 2 - math.floor(math.log10(abs(x))))}f}"


def size(n: float | int) -> str:
    """Bytes in powers of a thousand.

    >>> size(2304), size(31_457_280)
    ('2.3 kB', '31.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


COLUMNS = (
    Column("method", "method", str),
    Column("budget", "budget", str, "how much may stay"),
    Column("kept", "kept", "{:.1%}".format, "share that stays: of the weights, or of the tokens, read and remembered"),
    Column(
        "bits",
        "bits/weight",
        "{:.2f}".format,
        "stored bits, indices and low-rank parts included, a weight of the dense map",
    ),
    Column("bytes_after", "bytes", size, "the whole model as stored"),
    Column("flops", "FLOPs", "{:.1%}".format, "useful FLOPs of a forward pass, share of dense"),
    Column("perplexity", "perplexity", number, "exp of the mean loss on unseen text, with its 95 % interval"),
    Column("ratio", "x dense", number, "perplexity over dense's on the same text, with its paired 95 % interval"),
    Column(
        "kl",
        "KL to dense",
        number,
        "nats a token between the dense model's predictions and these, with its 95 % interval",
    ),
    Column("accuracy", "right", "{:.2f}".format, "share of questions answered to the letter, with its 95 % interval"),
    Column("read", "read", "{:.1%}".format, "share of the tokens that a word may read"),
    Column("remembered", "remembered", "{:.1%}".format, "share of the tokens that are there at the end"),
    Column("held", "x bytes", "{:.2f}".format, "what is remembered, places and tables included, over dense"),
    Column("seconds", "seconds", "{:.1f}".format, "to apply and measure, on one core"),
)


def columns_of(rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> list[Column]:
    """The columns that any of the rows fills."""
    return [c for c in columns if any(c.cell(row) for row in rows)]


def jsonl(rows: Iterable[Row]) -> str:
    """One JSON object a line; what is no number (NaN, infinity) becomes null."""
    return "\n".join(json.dumps({k: _finite(v) for k, v in row.items()}, ensure_ascii=False) for row in rows)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(rows: Sequence[Row], columns: Sequence[Column] = COLUMNS) -> str:
    """Aligned text: words to the left, numbers to the right. A row that failed says so instead of its numbers."""
    columns = columns_of(rows, columns)
    table = [[c.title for c in columns], *([c.cell(row) for c in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [_line(cells, widths, columns) for cells in table]
    return "\n".join(
        f"{line}  {row.get('error')}" if _failed(row) else line for line, row in zip(lines, [{}, *rows], strict=True)
    )


def _line(cells: Sequence[str], widths: Sequence[int], columns: Sequence[Column]) -> str:
    text = ""
    for i, (cell, width, column) in enumerate(zip(cells, widths, columns, strict=True)):
        gap = "" if i == 0 else "  " if column.words else " "
        text += gap + (cell.ljust(width) if column.words else cell.rjust(width))
    return text.rstrip()


def _failed(row: Row) -> bool:
    return isinstance(row.get("error"), str) and bool(row["error"])


def show(rows: Sequence[Row], columns: Sequence[Column] = COLUMNS, title: str = "") -> Any:
    """The same as a `rich` table, for a terminal. Rows marked `front` stand out, random and dense stand back."""
    from rich.table import Table
    from rich.text import Text

    columns = columns_of(rows, columns)
    table = Table(
        title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold", expand=False
    )
    for c in columns:
        table.add_column(c.title, justify="left" if c.words else "right", no_wrap=not c.words, overflow="fold")
    for row in rows:
        style = "bold green" if row.get("front") else "dim" if row.get("control") else "red" if _failed(row) else ""
        cells = [Text(c.cell(row), style=style) for c in columns]
        if _failed(row):
            cells[-1] = Text(str(row["error"]), style="red")
        table.add_row(*cells)
    return table
