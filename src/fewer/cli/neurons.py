"""fewer neurons: which hidden neurons of a model are on, and what a token would have to read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._bar import Bar
from ._print import Json, lines, note
from ._text import Calibration, Data, Length, Test, tokenizer_for

if TYPE_CHECKING:
    from fewer.recipe.neurons import Layer


def neurons(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="'bundled', a directory, or a name on the hub.")] = "bundled",
    error: Annotated[
        float, typer.Option(help="A neuron is off if those below it may go for this share of the MLP's output (CETT).")
    ] = 0.2,
    rise: Annotated[
        float | None, typer.Option(help="Instead: the error at which perplexity rises by this many percent (PPL-p%).")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the table and the picture as one HTML file.")] = None,
    stored: Annotated[
        str, typer.Option(help="How weights are stored, for bytes: bfloat16, float32, int8.")
    ] = "bfloat16",
    data: Data = "stdlib",
    calibration: Calibration = 8,
    test: Test = 16,
    length: Length = 512,
    json: Json = False,
) -> None:
    """Measure hidden neurons, layer by layer: density, hot and cold ones, reuse by the next token, tail error, bytes read.

    A neuron counts as on by the length of what it adds to the output (|h_i| ||W_down[:, i]||), above a cut that leaves the
    same cumulative tail truncation error in each layer; after a ReLU `--error 0.001` counts what is not 0. With `--rise`
    the cuts are fitted on calibration text, and the rise is that of the test text.

    Examples: `fewer neurons` · `fewer neurons bundled --rise 1 --html neurons.html`
    """
    import torch

    from fewer.data import corpus, windows
    from fewer.models import open_model
    from fewer.recipe.neurons import hidden_sites, tail_for_rise
    from fewer.recipe.neurons import neurons as measured

    from ._about import about
    from .frontier import _writable

    _writable(html, ".html")
    kind = getattr(torch, stored, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"not a dtype for weights: {stored!r}; write 'bfloat16', 'float32' or 'int8'")
    if rise is not None and not rise > 0:
        raise ValueError(f"perplexity is to rise by some percent, not by {rise}")
    tokenizer = tokenizer_for(model, "neurons are heard on text")
    opened, _ = open_model(model)
    hidden_sites(opened)
    fit = windows(corpus(data, "calibration"), tokenizer, length, calibration)
    tokens = windows(corpus(data, "test"), tokenizer, length, test)
    with Bar(quiet=json) as bar:
        error = error if rise is None else tail_for_rise(opened, fit, tokens, rise / 100)
        layers = measured(opened, fit, tokens, error, kind, bar("layers"))
    says = _told(layers, error, json)
    if html:
        told = about(model, f"{data}, {test} windows of {length} tokens, cuts from {calibration}", ctx.obj or [])
        _write(layers, says, told, html)


def _told(layers: "list[Layer]", error: float, json: bool) -> str:
    """The table, or JSON lines; and what it says in one sentence."""
    from fewer.recipe.neurons import bytes_a_token, laziness
    from fewer.report import plain
    from fewer.report.neurons import NEURON_COLUMNS

    rows = [layer.as_dict() for layer in layers]
    read, dense = bytes_a_token(layers)
    lazy = laziness(layers)
    says = (
        f"At a tail error of {error:.3g} a token needs {lazy.mean.value:.1%} of its hidden neurons, "
        f"and reads {read.value / dense:.1%} of the MLPs' bytes if it knows which"
    )
    if json:
        lines([*rows, {"layer": "all", "error": error, "read": read.value, "dense": dense}])
    else:
        print(plain(rows, NEURON_COLUMNS))
        print(f"\n{says}.\n{lazy.mean}" + (f"; {lazy.slope}" if len(rows) > 2 else ""))
    return says


def _write(layers: "list[Layer]", says: str, told: dict[str, str], page: Path) -> None:
    import torch

    from fewer.report.neurons import neurons_drawn, neurons_page

    rows = [layer.as_dict() for layer in layers]
    ranked = {x.name: x.activity.frequency.sort(descending=True).values.tolist() for x in layers}
    along = torch.stack([x.activity.positions for x in layers]).mean(0).tolist()
    page.write_text(neurons_page(rows, neurons_drawn(rows, ranked, along), says, told), encoding="utf-8")
    note(f"written: {page}")
