"""All features of a dictionary in one HTML file that opens offline: a table to search, and a page for each."""

import base64
import json
import os
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

BLOCK = 32  # features that are compressed together, and opened together
NONE = 0xFFFFFFFF
HEARD, PROMOTED, SPARK = 6, 4, 16  # of each in the table

Words = Callable[[Sequence[int]], Sequence[str]]


def explorer(
    path: str | Path, features: Iterable[Mapping[str, Any]], words: Words, about: Mapping[str, str], title: str
) -> Path:
    """Write the page of `features`, in their order and as they come: no more than a block of them is in memory.

    Each is a mapping with the fields of `dictionaries.Facts`, plain. `words` spells tokens by their numbers. `about` says
    what was looked at, in the order to be shown. The file appears whole or not at all.
    """
    path, book, table = Path(path), _Book(), _Table()
    part = path.with_name(f".{path.name}.part")
    shell, coming, numbers = _shell(title, about).partition("{{data}}"), iter(features), count()
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(shell[0])
            while block := list(islice(coming, BLOCK)):
                _put(file, f"block{next(numbers)}", [_page(f, book) for f in block])
                for f in block:
                    table.add(f, book)
            spelt = list(words(list(book.number)))
            facts = {"features": table.size, "block": BLOCK, "heard": HEARD, "promoted": PROMOTED, "spark": SPARK}
            _put(file, "table", {**facts, "words": spelt, "columns": table.columns()})
            file.write(shell[2])
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


class _Book:
    """Tokens numbered in the order in which they are first met: small numbers, and only words that are shown."""

    def __init__(self) -> None:
        self.number: dict[int, int] = {}

    def __call__(self, token: int) -> int:
        return self.number.setdefault(token, len(self.number))


class _Table:
    """What the table shows and is sorted by, column by column."""

    def __init__(self) -> None:
        self.size = 0
        self.rows = {"count": array("I"), "frequency": array("f"), "mean": array("f"), "loudest": array("f")}
        self.rows |= {"focus": array("f"), "heard": array("I"), "promoted": array("I"), "spark": array("B")}

    def add(self, f: Mapping[str, Any], book: _Book) -> None:
        self.size += 1
        for name in ("count", "frequency", "mean", "loudest"):
            self.rows[name].append(f[name])
        self.rows["focus"].append(f["heard"][0][1] if f["heard"] else 0.0)
        for name, width in (("heard", HEARD), ("promoted", PROMOTED)):
            tokens = [book(token) for token, _ in f[name][:width]]
            self.rows[name].extend(tokens + [NONE] * (width - len(tokens)))
        self.rows["spark"].extend(_spark(f["histogram"]))

    def columns(self) -> dict[str, list[str]]:
        """Kind and bytes of each column; the numbers are little-endian."""
        return {name: [a.typecode, base64.b64encode(a.tobytes()).decode()] for name, a in self.rows.items()}


def _spark(heights: Sequence[int]) -> list[int]:
    """A histogram in few bars of 0 to 255, by the number of digits of each height."""
    each = max(1, -(-len(heights) // SPARK))
    bars = [sum(heights[i * each : (i + 1) * each]).bit_length() for i in range(SPARK)]
    return [255 * bar // max(1, *bars) for bar in bars]


def _page(f: Mapping[str, Any], book: _Book) -> list[Any]:
    """All of one feature, short: tokens by their number in the book, numbers to four digits, zeros left out."""
    return [
        list(f["histogram"]),
        [_short(f["low"]), _short(f["high"])],
        *([[book(token), _short(x)] for token, x in f[name]] for name in ("heard", "promoted", "suppressed")),
        [
            [e["quantile"], e["place"], e["first"], [book(t) for t in e["tokens"]], _sparse(e["values"])]
            for e in f["examples"]
        ],
        [[g, _short(x)] for g, x in f["near"]],
        [[g, _short(r), both] for g, r, _, both in f["together"]],
    ]


def _sparse(values: Sequence[float]) -> list[int | float]:
    return [x for i, v in enumerate(values) if v for x in (i, _short(v))]


def _short(x: float) -> float:
    return float(f"{x:.4g}")


def _put(file: IO[str], name: str, value: Any) -> None:
    """JSON, deflated, in letters that HTML leaves alone."""
    raw = zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), 9)
    file.write(f'<script type="text/plain" id="{name}">{base64.b64encode(raw).decode()}</script>\n')


def _shell(title: str, about: Mapping[str, str]) -> str:
    read = files("fewer.report").joinpath
    parts = {name: read(f"explorer.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    parts["title"] = escape(title)
    parts["about"] = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in about.items())
    text = read("explorer.html").read_text(encoding="utf-8")
    for name, value in parts.items():
        text = text.replace("{{" + name + "}}", value)
    return text
