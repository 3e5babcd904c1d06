"""fewer frontier: quality against cost, for every method."""

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ._live import Live
from ._print import Json, lines, note
from ._text import Calibration, Data, Length, Test, text


def frontier(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="'bundled' (a 10M model of code), a directory, or a name on the hub.")
    ] = "bundled",
    axes: Annotated[str, typer.Option(help="Which axes, with commas.")] = "weights",
    budgets: Annotated[str, typer.Option(help="How much may stay, with commas: 50%,30%,2:4.")] = "50%,30%,2:4",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Only these, with commas: wanda,sparse_gpt + eora(rank=16),wanda by owl. All that are quick by default."
        ),
    ] = None,
    where: Annotated[str, typer.Option(help="Which maps: '*', roles, groups or patterns.")] = "*",
    report: Annotated[
        Path | None, typer.Option(help="Write the figure and the table as one HTML file that opens offline.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Write the figure as PNG.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Write the figure as SVG.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the points as JSON lines.")] = None,
    data: Data = "stdlib",
    calibration: Calibration = 12,
    test: Test = 12,
    length: Length = 512,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes side by side; one a core by default.")] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on the Ray cluster of RAY_ADDRESS (extra: fewer[ray]).")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Draw quality against cost: methods x budgets, beside dense and random.

    What was measured before is not measured again (the cache is $FEWER_CACHE, else ~/.cache/fewer): stop it with Ctrl-C and go on later.

    Examples: `fewer frontier bundled --report report.html` · `fewer frontier ./model --methods "wanda,wanda + eora" --budgets 50%,2:4`
    """
    for path, ending in ((report, ".html"), (png, ".png"), (svg, ".svg"), (out, "")):
        _writable(path, ending)
    from fewer.recipe.frontier import frontier as measured

    words = text(data, calibration, test, length)
    with Live(quiet=json) as live:
        points = measured(
            model, _split(axes), _split(budgets), _split(methods) if methods else None, where, words,
            out, jobs, ray, device, live.progress, lambda p: lines([p.as_dict()]) if json else live.found(p),
        )  # fmt: skip
    told = [f"{model}, at {where}" if where != "*" else model, str(words)]
    _deliver([p.as_dict() for p in points], told, ctx.obj or [], json, report, [p for p in (png, svg) if p])
    for path in filter(None, (report, png, svg, out)):
        note(f"written: {path}")


def _deliver(
    points: list[dict[str, Any]],
    told: list[str],
    arguments: list[str],
    json: bool,
    report: Path | None,
    pictures: list[Path],
) -> None:
    """The table, the finding, the page, the pictures."""
    from fewer.report import compared, figure, finding, page, picture

    from ._about import about

    rows, words = compared(points), about(*told, arguments)
    if not json:
        _print(rows)
        print(f"\n{finding(rows)}.")
    if report:
        report.write_text(page(rows, words), encoding="utf-8")
    for path in pictures:
        picture(figure(rows, words), path)


def _print(rows: list[dict[str, Any]]) -> None:
    from fewer.report import plain, show

    if not sys.stdout.isatty():
        return print(plain(rows))
    from rich.console import Console

    Console().print(show(rows))


def _split(text: str) -> list[str]:
    """At commas, but not those inside parentheses.

    >>> _split("wanda, wanda + eora(rank=16, seed=1)")
    ['wanda', 'wanda + eora(rank=16, seed=1)']
    """
    return [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def _writable(path: Path | None, ending: str) -> None:
    """Refuse a file that cannot be written after minutes of work."""
    if path is None:
        return
    if not path.name.endswith(ending):
        raise ValueError(f"{path}: its name must end in {ending}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.parent} is no directory to write {path.name} in")
