"""fewer recall: what a model still finds in a long text when it reads or remembers less."""

from typing import Annotated

import typer

from ._print import Json, lines, note, table


def recall(
    model: Annotated[
        str, typer.Argument(help="'bundled' (a 10M model of code), a directory, or a name on the hub.")
    ] = "bundled",
    axes: Annotated[str, typer.Option(help="cache (forget), attention (read less), or both, with a comma.")] = "cache",
    budgets: Annotated[str, typer.Option(help="How much may stay, with commas: 25%,12.5%,256.")] = "25%",
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
    json: Json = False,
) -> None:
    """Hide facts in long code, let the model read it with each method, then ask: beside dense and random.

    The questions come after the text, several of them, in one cache: what was forgotten for the first is missing for the last.

    Examples: `fewer recall` · `fewer recall bundled --axes attention --budgets 64 --methods quest,streaming --tokens 2048`
    """
    from fewer.models import open_model
    from fewer.recipe.recalling import questions, steps_of
    from fewer.recipe.recalling import recall as measured

    from .frontier import _split

    steps = steps_of(_split(axes), _split(budgets), _split(methods) if methods else None)
    opened, tokenizer = open_model(model)
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer: questions are asked in words")
    asked = questions(tokenizer, tokens, count, turns)
    rows = []
    for i, r in enumerate(measured(opened, tokenizer, steps, asked, every=every), 1):
        if json:
            lines([r.as_dict()])
            continue
        note(f"{i} of {len(steps)}: {r.step}, {r.seconds:.0f} s")
        rows.append([r.step, f"{r.accuracy.value:.2f} [{r.accuracy.low:.2f}, {r.accuracy.high:.2f}]",
                     *(f"{t:.2f}" for t in r.turns), f"{r.kept:.1%}", f"{r.bytes:.2f}"])  # fmt: skip
    if not json:
        names = [f"turn {t + 1}" for t in range(turns)]
        table(
            ["step", "right", *names, "remembered", "bytes, of dense"], sorted(rows, key=lambda r: r[1], reverse=True)
        )
