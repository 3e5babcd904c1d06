"""How commands print: JSON lines for programs, tables for people, nothing but data on stdout."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout, and nothing else.")]


def lines(rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, each written as soon as it is known."""
    for row in rows:
        print(json.dumps(row, ensure_ascii=False), flush=True)


def note(text: str) -> None:
    """A word to the person who waits; never on stdout."""
    print(text, file=sys.stderr, flush=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], wrap: Sequence[str] = ()) -> None:
    """Text in columns: fitted to a terminal, the columns `wrap` folded; elsewhere one row a line, whole."""
    if not sys.stdout.isatty():
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        for row in [head, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        grid.add_column(name, no_wrap=name not in wrap, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell, style="bold" if i == 0 else "") for i, cell in enumerate(row)))
    Console().print(grid)
