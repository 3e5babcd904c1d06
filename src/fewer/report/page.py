"""One HTML file that opens offline: the finding, the figure, the table, and what made it."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from .figure import COSTS, FORMATS, LINEAR, QUALITIES, figure, records
from .finding import finding, front, measured
from .table import Column, Row, columns_of


def page(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """The report as HTML; scripts and styles are inside, so it needs no network.

    `about` says what was measured on what: `model`, `data`, `machine`, `command`, in the order to be shown.
    """
    import vl_convert

    costs = {field: words for field, words in COSTS.items() if any(row.get(field) is not None for row in rows)}
    qualities = {field: words for field, words in QUALITIES.items() if measured(rows, field)}
    spec = figure(rows, about, next(iter(costs)), next(iter(qualities))).to_dict()
    spec["datasets"] = {}
    parts = {
        "title": escape(finding(rows)),
        "subtitle": escape(" · ".join(list(about.values())[:2])),
        "costs": _options(costs),
        "qualities": _options(qualities),
        "cost_words": _json({field: {"title": words, "format": FORMATS[field]} for field, words in costs.items()}),
        "quality_words": _json(qualities),
        "log": "" if next(iter(qualities)) in LINEAR else "checked",
        "table": _table(rows),
        "about": "".join(f"<dt>{escape(k)}</dt><dd>{_about(k, v)}</dd>" for k, v in about.items()),
        "rows": _json(records(rows, next(iter(costs)), next(iter(qualities)))),
        "spec": _json(spec),
        "vega": vl_convert.javascript_bundle().replace("</script", "<\\/script"),
    }
    text = files("fewer.report").joinpath("page.html").read_text(encoding="utf-8")
    for name, value in parts.items():
        text = text.replace("{{" + name + "}}", value)
    return text


def _json(value: Any) -> str:
    """JSON that may stand inside a script."""
    return json.dumps(value, ensure_ascii=False).replace("</", "<\\/")


def _options(words: Mapping[str, str]) -> str:
    return "".join(f'<option value="{field}">{escape(text)}</option>' for field, text in words.items())


def _about(key: str, value: str) -> str:
    return f"<code>{escape(value)}</code>" if key == "command" else escape(value)


def _table(rows: Sequence[Row]) -> str:
    columns = columns_of(rows)
    head = "".join(
        f'<th{"" if c.words else " class=n"} title="{escape(c.about)}">{escape(c.title)}</th>' for c in columns
    )
    best = [id(row) for row in front(rows)]
    body = "".join(_row(row, columns, id(row) in best) for row in rows)
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def _row(row: Row, columns: Sequence[Column], best: bool) -> str:
    kind = "failed" if row.get("error") else "front" if best else "control" if row.get("control") else ""
    if kind == "failed":
        words = "".join(f'<td data-v="{escape(row[c.field])}">{escape(row[c.field])}</td>' for c in columns if c.words)
        rest = sum(not c.words for c in columns)
        return f'<tr class="failed">{words}<td colspan="{rest}">{escape(str(row["error"]))}</td></tr>'
    return f'<tr class="{kind}">{"".join(_cell(row, c) for c in columns)}</tr>'


def _cell(row: Row, c: Column) -> str:
    number, bracket, interval = c.cell(row).partition(" [")
    small = f"<small>[{escape(interval)}</small>" if bracket else ""
    side = "" if c.words else " class=n"
    return f'<td{side} data-v="{escape(str(row.get(c.field, "")))}">{escape(number)}{small}</td>'
