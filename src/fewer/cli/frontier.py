"""fewer frontier: quality against cost, for every method."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fewer.core.spell import parted

from ._live import Live
from ._print import Json, lines, note
from ._text import Calibration, Data, Length, Test, text

AXES = "weights; or attention, cache or both, with a comma: what is read, what is remembered."
AMOUNTS = "How much may stay, with commas; 50%,30%,2:4, or 50%,25%,12.5% of tokens."
ONLY = "Only these, with commas: wanda,sparse_gpt + eora(rank=16),wanda by owl. All that are quick by default."
TURNS = "Of attention and cache: questions about each of --test texts of --length tokens."
Axes = Annotated[str, typer.Option(help=AXES)]
Budgets = Annotated[str | None, typer.Option(help=AMOUNTS)]
Methods = Annotated[str | None, typer.Option(help=ONLY)]
Turns = Annotated[int, typer.Option(min=1, max=8, help=TURNS)]


def frontier(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="'bundled' (a 10M model of code), a directory, or a name on the hub.")
    ] = "bundled",
    axes: Axes = "weights",
    budgets: Budgets = None,
    methods: Methods = None,
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
    turns: Turns = 3,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes side by side; one a core by default.")] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on the Ray cluster of RAY_ADDRESS (extra: fewer[ray]).")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Draw quality against cost: methods x budgets, beside dense and random.

    What was measured before is not measured again (the cache is $FEWER_CACHE, else ~/.cache/fewer): stop it with Ctrl-C and go on later.

    On the axes attention and cache the quality is the share of questions about a long text that are answered to the letter.

    Examples: `fewer frontier bundled --report report.html` · `fewer frontier ./model --methods "wanda,wanda + eora" --budgets 50%,2:4` ·
    `fewer frontier bundled --axes attention,cache --length 1024 --report report.html`
    """
    for path, ending in ((report, ".html"), (png, ".png"), (svg, ".svg"), (out, "")):
        _writable(path, ending)
    from fewer.recipe.frontier import frontier as measured
    from fewer.recipe.recalling import CHOOSE, Questions

    words = text(data, calibration, test, length)
    asked = Questions(length, test, turns) if set(CHOOSE) & set(_split(axes)) else None
    with Live(quiet=json) as live:
        points = measured(
            model, _split(axes), _split(budgets) if budgets else None, _split(methods) if methods else None, where, words,
            out, jobs, ray, device, live.progress, lambda p: lines([p.as_dict()]) if json else live.found(p), asked,
        )  # fmt: skip
    told = [f"{model}, at {where}" if where != "*" else model, str(asked or words)]
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
    return [part.strip() for part in parted(text) if part.strip()]


def _writable(path: Path | None, ending: str) -> None:
    """Refuse a file that cannot be written after minutes of work."""
    if path is None:
        return
    if not path.name.endswith(ending):
        raise ValueError(f"{path}: its name must end in {ending}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path.parent} is no directory to write {path.name} in")
