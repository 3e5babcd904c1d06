"""The command `fewer`: one file a command. Errors are sentences on stderr; exit codes are 0, 1 (a check or claim failed), 2 (bad input)."""

import os
import sys
from collections.abc import Sequence

import typer

from . import (
    activations,
    check,
    claims,
    explore,
    frontier,
    judge,
    kernels,
    measure,
    methods,
    neurons,
    recall,
    show,
    sparsify,
    steer,
    study,
    train,
)

_HELP = """Make neural networks compute less, and see what that costs.

A **step** says what to do: `weights/wanda 50% @ *.mlp.*` is a method, a **budget** (how much may stay) and a place (**where**).

| budget | what stays |
|---|---|
| `50%` | half of each row |
| `64` | 64 of each row |
| `2:4` | two of every four neighbours, which GPUs run faster |
| `25% of 16x16` | a quarter of the tiles of 16 x 16 |
| `10% per tensor`, `30% per model` | the best 10 % of each matrix, the best 30 % of all matrices together |

**where** is `*` (every linear map but embeddings and head), a role (`q k v o gate up down`), a group (`attention`, `mlp`, `experts`),
a pattern on names (`*.layers.3.*`), or several with commas; `!` takes away.

Start with: `fewer methods weights` · `fewer show weights/wanda` · `fewer frontier bundled --report report.html`
"""

STOPPED = "stopped; what was finished is kept"

app = typer.Typer(
    name="fewer",
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for _panel, _commands in {
    "Look": (methods.methods, show.show, kernels.kernels, explore.explore),
    "Do": (
        sparsify.sparsify,
        train.train,
        activations.activations,
        measure.measure,
        neurons.neurons,
        recall.recall,
        judge.judge,
        steer.steer,
        frontier.frontier,
    ),
    "Verify": (check.check, claims.claims),
}.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(study.app, rich_help_panel="Do")


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", envvar="FEWER_DEBUG", help="Show the traceback of an error."),
) -> None:
    if debug:
        os.environ["FEWER_DEBUG"] = "1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code. What a user can mend is told in a sentence, without a traceback."""
    try:
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        code = int(app(args=arguments, prog_name="fewer", obj=arguments, standalone_mode=False) or 0)
        return _say(STOPPED, code) if code == 130 else code
    except KeyboardInterrupt:
        return _say(STOPPED, 130)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # typer's own: an unknown option, a missing argument
            error.show()
            return int(error.exit_code)
        if isinstance(error, typer.Abort):
            return _say(STOPPED, 130)
        if os.environ.get("FEWER_DEBUG", "") not in ("", "0"):
            raise
        if _mendable(error):
            return _say(_sentence(error), 2)
        return _say(
            f"a fault of fewer: {type(error).__name__}: {error}; `fewer --debug ...` shows where, please report it", 70
        )


def _mendable(error: Exception) -> bool:
    """Errors that speak of what was given; a `KeyError` or `IndexError` speaks of our code."""
    ours = isinstance(error, (KeyError, IndexError))
    return isinstance(error, (ValueError, LookupError, OSError, ModuleNotFoundError)) and not ours


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system'}: {error.strerror}"
    return str(error)


def _say(text: str, code: int) -> int:
    print(f"fewer: {text}", file=sys.stderr)
    return code
