"""fewer sparsify: do it for good."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ._bar import Bar
from ._print import Json, lines, note
from ._text import Calibration, Data, Length, text, tokenizer_for


def sparsify(
    model: Annotated[str, typer.Argument(help="'bundled', or the directory of a transformers checkpoint.")],
    steps: Annotated[list[str], typer.Argument(help="Steps in order, or one .yaml or .txt recipe.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to write; it appears whole or not at all.")],
    force: Annotated[bool, typer.Option("--force", help="Replace OUT, once the new one is whole.")] = False,
    format: Annotated[
        str,
        typer.Option(
            help="`packed`: what survives, in our layouts. `dense`: plain tensors with zeros, for any tool; no byte is saved. "
            "`sparse-bitmask`, `sparse-24-bitmask`: those of compressed-tensors."
        ),
    ] = "packed",
    fast: Annotated[bool, typer.Option("--fast", help="Layouts that run fastest here, not the smallest.")] = False,
    data: Data = "stdlib",
    calibration: Calibration = 64,
    length: Length = 512,
    device: Annotated[
        str, typer.Option("--device", help="Where blocks are pruned, one at a time: 'cpu', 'cuda', 'cuda:1'.")
    ] = "",
    json: Json = False,
) -> None:
    """Make a model sparse for good, block by block, and save what survives.

    A step is METHOD BUDGET, then `by` an allocator, `+` correctors, `@` where. A killed run goes on where it was.
    Under `torchrun --nproc-per-node N -m fewer sparsify ...` the text and the maps of each block are shared out.

    Examples: `fewer sparsify bundled "weights/wanda 50%" -o smaller` · `fewer sparsify ./model "weights/sparse_gpt 2:4 @ mlp" "weights/wanda 50% @ attention" -o OUT`
    """
    from fewer.calibrate import launched
    from fewer.recipe import recipe
    from fewer.recipe import sparsify as do
    from fewer.recipe.formats import find_format
    from fewer.recipe.store import check_place

    if fast and format != "packed":
        raise ValueError(f"--fast chooses among our own layouts: leave --format {format} out")
    format = "fast" if fast else format
    find_format(format)
    todo = recipe(steps[0] if len(steps) == 1 else steps)
    with launched() as crew:
        crew.first(lambda: check_place(out, force))
        place, tokens = _prepared(model, todo, text(data, calibration, 1, length))
        with Bar(json or crew.rank > 0) as bar:
            told = bar("sparsify")
            progress = lambda what, done, total: told(done, total, what)  # noqa: E731
            applied = do(place, todo, tokens, out, force, format, progress, _of_mine(device))
    if crew.rank > 0:
        return
    if json:
        return lines(c.as_dict() for c in applied.changes)
    from fewer.report import Report

    print(report := Report(applied.changes))
    if costs := report.costs:
        print(f"\n{costs}")
    note(f"written: {out}; `fewer measure {out}` says how good it is")


def _of_mine(device: str) -> str | None:
    """Each process of a crew has a GPU of its own, where one is meant without its number."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device or None


def _prepared(model: str, todo: Any, words: Any) -> tuple[str, Any]:
    """Where the model is, and calibration tokens if a step asks for statistics."""
    from fewer.data import corpus, windows
    from fewer.models import locate
    from fewer.recipe.planning import hears

    place = locate(model)
    if not any(hears(step) for step in todo):
        return place, None
    tokenizer = tokenizer_for(model, "a step asks for statistics of text")
    return place, windows(corpus(words.source, "calibration"), tokenizer, words.length, words.calibration, words.seed)
