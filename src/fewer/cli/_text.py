"""The options that say which text is read, shared by the commands that read some."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fewer.recipe.frontier import Text

LEARNT = "what is learnt here is learnt on text"  # why a tokenizer is asked for
DATA = "Text: 'stdlib' (the Python standard library), a file, a folder, 'lines.jsonl:field' or 'hf:name/split:field'."
Data = Annotated[str, typer.Option("--data", help=DATA)]
Calibration = Annotated[int, typer.Option("--calibration", min=1, help="Windows of text to calibrate on.")]
Test = Annotated[int, typer.Option("--test", min=1, help="Windows of text to test on, from other documents.")]
Length = Annotated[int, typer.Option("--length", min=2, help="Tokens in a window.")]


def text(data: str, calibration: int, test: int, length: int) -> "Text":
    from fewer.recipe.frontier import Text

    return Text(data, calibration, test, length)


def tokenizer_for(model: str, why: str) -> Any:
    """The tokenizer of a model, before its weights are opened. ValueError if it has none: `why` says what asks for text."""
    from fewer.models import locate, tokenizer_of

    return needed(tokenizer_of(locate(model)), model, why)


def needed(tokenizer: Any, model: str, why: str) -> Any:
    """ValueError if it is none."""
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer: {why}")
    return tokenizer
