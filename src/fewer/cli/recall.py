"""fewer recall: what a model still finds in a long text when it reads or remembers less."""

from typing import TYPE_CHECKING, Annotated

import typer

from ._print import Json, lines, note, table

if TYPE_CHECKING:
    from fewer.recipe.point import Point


def recall(
    model: Annotated[
        str, typer.Argument(help="'bundled' (a 10M model of code), a directory, or a name on the hub.")
    ] = "bundled",
    axes: Annotated[str, typer.Option(help="cache (forget), attention (read less), or both, with a comma.")] = "cache",
    budgets: Annotated[str, typer.Option(help="How much may stay, with commas: 25%,256,95% of mass,200MB.")] = "25%",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Only these, with commas: snap_kv,key_norm by ada,attention/quest. All that are quick by default."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=64, help="Tokens of each text, questions included.")] = 1024,
    count: Annotated[int, typer.Option(min=1, help="Texts; each is asked several times.")] = 12,
    turns: Annotated[int, typer.Option(min=1, max=8, help="Questions about each text, one after the other.")] = 3,
    every: Annotated[int, typer.Option(min=1, help="While decoding, forget every so many tokens.")] = 64,
    data: Annotated[
        str,
        typer.Option(
            help="Ask the first --count rows of a file of RULER, SCBench or LongBench: .jsonl, .json or .parquet."
        ),
    ] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Hide facts in long code, let the model read it with each method, then ask: beside dense and random.

    The questions come after the text, several of them, in one cache: what was forgotten for the first is missing for the last.

    Examples: `fewer recall` · `fewer recall bundled --axes attention --budgets 64 --methods quest,streaming --tokens 2048`
    """
    from fewer.recipe.frontier import frontier
    from fewer.recipe.recalling import Questions

    from .frontier import _split

    def found(p: "Point") -> None:
        lines([p.as_dict()]) if json else note(p.error or f"{p.step or 'dense'}, {p.seconds:.0f} s")

    asked = Questions(tokens, count, turns, every, file=data)
    chosen = _split(methods) if methods else None
    run = {"jobs": jobs, "device": device, "found": found, "questions": asked}
    points, rows = frontier(model, _split(axes), _split(budgets), chosen, **run), []
    for p in points:
        if (right := p.accuracy) is not None:
            rows.append([p.step or "dense", f"{right.value:.2f} [{right.low:.2f}, {right.high:.2f}]", *(f"{t:.2f}" for t in p.turns),
                         f"{p.read:.1%}", f"{p.remembered:.1%}", f"{p.held:.2f}"])  # fmt: skip
    if json:
        return
    names = [f"turn {t + 1}" for t in range(max((len(p.turns) for p in points), default=0))]
    rows.sort(key=lambda r: r[1], reverse=True)
    table(["step", "right", *names, "read", "remembered", "bytes, of dense"], rows)
    for text in dict.fromkeys(text for p in points for text in p.notes):
        note(text)
