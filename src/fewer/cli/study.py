"""fewer study: questions that papers asked, asked of your model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._live import Live
from ._print import Json, lines, note
from ._text import Data, Length, Test, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from fewer.recipe.studies import Study

_HELP = """Ask of a model what a paper asked: a table, a sentence, a picture.

| study | asks |
|---|---|
| `knee` | how much can go at once before the loss turns up? (essential sparsity) |
| `search` | does the best of many random masks beat a random mask? |
| `large-small` | large and sparse, or small and dense, at equal stored bytes? |
| `sensitivity` | which block, or which role, bears pruning least? |

What was measured before is not measured again, so a study that was stopped goes on. Example: `fewer study knee bundled --png knee.png`
"""

app = typer.Typer(name="study", help=_HELP, no_args_is_help=True, rich_markup_mode="markdown")

Model = Annotated[str, typer.Argument(help="'bundled', a directory, or a name on the hub.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write the rows as JSON lines.")]
Png = Annotated[Path | None, typer.Option(help="Write the picture as PNG.")]
Svg = Annotated[Path | None, typer.Option(help="Write the picture as SVG.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes side by side; one a core by default.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Calibration = Annotated[int, typer.Option("--calibration", min=1, help="Windows of text to calibrate on.")]
Budgets = Annotated[str, typer.Option(help="How much may stay, with commas.")]
Pruner = Annotated[str, typer.Option("--method", help="Who prunes, with fields if you like.")]


@app.command()
def knee(
    ctx: typer.Context, model: Model = "bundled", method: Pruner = "weights/magnitude",
    removed: Annotated[str, typer.Option(help="Percent to remove of the whole model, rising.")] = "10,20,30,40,50,60,70",
    within: Annotated[float, typer.Option(help="Nats a token above the tangent that make the knee.")] = 0.1,
    out: Out = None, png: Png = None, svg: Svg = None, data: Data = "stdlib", calibration: Calibration = 24,
    test: Test = 24, length: Length = 512, jobs: Jobs = None, device: Device = "cpu", json: Json = False,
) -> None:  # fmt: skip
    """How much can go at once, without retraining, before the loss turns up?

    The knee is the largest removal whose loss lies within WITHIN nats a token of the tangent: the line through dense and
    the least removal. Its interval is a bootstrap over test windows. Two curves, unstructured over the whole model and N of
    every 8, each beside random. (Jaiswal et al. 2023, arXiv 2306.03805)

    Example: `fewer study knee bundled --png knee.png`
    """

    def ask(bench: Any) -> "Study":
        from fewer.recipe.studies import Knee

        percents = tuple(int(p) for p in removed.split(","))
        return Knee(method, percents, within)

    _study(ctx, ask, model, (data, calibration, test, length), jobs, device, json, out, png, svg)


@app.command()
def search(
    ctx: typer.Context, model: Model = "bundled", budgets: Budgets = "90%,50%,2:4",
    masks: Annotated[int, typer.Option(min=2, help="Random masks to choose from.")] = 8,
    repeats: Annotated[int, typer.Option(min=2, help="Searches, each with masks of its own.")] = 8,
    out: Out = None, png: Png = None, svg: Svg = None, data: Data = "stdlib",
    test: Test = 24, length: Length = 512, jobs: Jobs = None, device: Device = "cpu", json: Json = False,
) -> None:  # fmt: skip
    """Does the best of many random masks beat a random mask of the same density?

    Each search draws MASKS masks, keeps the one of lowest loss on every other window, and is judged on the rest, against
    its first mask; the interval is over REPEATS searches. Budgets x masks x repeats points are measured: start small.
    (Farahani 2024, arXiv 2403.08265, found nothing gained)

    Example: `fewer study search bundled --budgets 90% --masks 4 --repeats 4`
    """

    def ask(bench: Any) -> "Study":
        from fewer.recipe.studies import Search

        return Search(_split(budgets), masks, repeats)

    _study(ctx, ask, model, (data, 1, test, length), jobs, device, json, out, png, svg)


@app.command("large-small")
def large_small(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="The large model: 'bundled', a directory, or a name on the hub.")],
    small: Annotated[str, typer.Argument(help="The small one, of the same tokenizer.")],
    method: Pruner = "weights/sparse_gpt", budgets: Budgets = "60%,50%,40%,30%,20%,10%",
    out: Out = None, png: Png = None, svg: Svg = None, data: Data = "stdlib", calibration: Calibration = 24,
    test: Test = 24, length: Length = 512, jobs: Jobs = None, device: Device = "cpu", json: Json = False,
) -> None:  # fmt: skip
    """Large and sparse, or small and dense, at equal stored bytes?

    The large model is pruned at each budget; of those stored in no more bytes than the small dense one (indices, embeddings
    and all) the best is compared with it on the same windows, paired. (Zhu and Gupta 2017, arXiv 1710.01878)

    Example: `fewer study large-small ./big bundled --budgets 40%,30%,20% --png sizes.png`
    """

    def ask(bench: Any) -> "Study":
        from fewer.recipe.frontier import Bench
        from fewer.recipe.studies import LargeSmall

        words = text(data, calibration, test, length)
        other = Bench.at(small, data=words, jobs=jobs, device=device, progress=bench.progress, found=bench.found)
        return LargeSmall(other, method, _split(budgets))

    _study(ctx, ask, model, (data, calibration, test, length), jobs, device, json, out, png, svg)


@app.command()
def sensitivity(
    ctx: typer.Context, model: Model = "bundled", method: Pruner = "weights/wanda", budgets: Budgets = "50%,30%",
    by: Annotated[str, typer.Option(help="What a part is: block or role.")] = "block",
    out: Out = None, png: Png = None, svg: Svg = None, data: Data = "stdlib", calibration: Calibration = 24,
    test: Test = 24, length: Length = 512, jobs: Jobs = None, device: Device = "cpu", json: Json = False,
) -> None:  # fmt: skip
    """Which block, or which role, bears pruning least?

    One part at a time is pruned, all else stays dense; the last row prunes all. Loss is paired with dense over the same
    windows; `each` divides it by the millions of weights removed. (Han et al. 2015, arXiv 1506.02626, Figure 6)

    Examples: `fewer study sensitivity bundled` · `fewer study sensitivity bundled --by role --budgets 2:4 --png roles.png`
    """

    def ask(bench: Any) -> "Study":
        from fewer.recipe.studies import Sensitivity

        return Sensitivity(method, _split(budgets), by)

    _study(ctx, ask, model, (data, calibration, test, length), jobs, device, json, out, png, svg)


def _split(budgets: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in budgets.split(",") if part.strip())


def _study(
    ctx: typer.Context, ask: "Callable[[Any], Study]", model: str, words: tuple[str, int, int, int], jobs: int | None,
    device: str, json: bool, out: Path | None, png: Path | None, svg: Path | None,
) -> None:  # fmt: skip
    """Measure, print, write; everything that can be refused is refused before."""
    from .frontier import _writable

    for path, ending in ((png, ".png"), (svg, ".svg"), (out, "")):
        _writable(path, ending)
    from fewer.recipe.frontier import Bench
    from fewer.report import jsonl, plain
    from fewer.report.study import drawn, picture, study_columns

    from ._about import about

    with Live(quiet=json) as live:
        bench = Bench.at(model, data=text(*words), jobs=jobs, device=device, progress=live.progress, found=live.found)
        found = ask(bench).ask(bench)
    if json:
        lines(found.rows)
    else:
        print(plain(found.rows, study_columns(found.rows, found.titles)))
        print(f"\n{found.says}.")
    if out:
        out.write_text(jsonl(found.rows) + "\n", encoding="utf-8")
    told = about(model, str(text(*words)), ctx.obj or [])
    for path in filter(None, (png, svg)):
        picture(drawn(found.rows, found.titles, found.x, found.y, found.by, found.says, told), path)
    for path in filter(None, (out, png, svg)):
        note(f"written: {path}")
