"""fewer activations: run a model once, and keep what some of its sites say on the disk."""

from pathlib import Path
from typing import Annotated

import typer

from ._bar import Bar
from ._print import Json, lines, note
from ._text import Data, Length

SITE = "What is stored: the end of a module's path, 'layers.4' (what it says), 'layers.4.mlp:in' (what it hears); repeat for several."
DTYPE = "bfloat16, float16 or float32; half the bytes lose what hardly a dictionary sees."


def activations(
    model: Annotated[str, typer.Argument(help="'bundled', a directory, or a name on the hub.")],
    site: Annotated[list[str], typer.Option(help=SITE)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to write; it appears whole or not at all.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of text to read.")] = 500_000,
    dtype: Annotated[str, typer.Option(help=DTYPE)] = "bfloat16",
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it exists, once the new one is whole.")
    ] = False,
    length: Length = 256,
    data: Data = "stdlib",
    seed: Annotated[int, typer.Option(help="Of the text and its order.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Store activations to learn dictionaries from: the model runs once, however many are learnt.

    Special tokens are left out. A killed run goes on where it was with the same command.

    Example: `fewer activations bundled --site layers.4 --tokens 2000000 -o store`, then `fewer train features/top_k 32 --store store -o sae`
    """
    from fewer.data import corpus, every_window
    from fewer.models import find_taps, locate, open_model, tokenizer_of
    from fewer.train import store
    from fewer.train.stored import DTYPES

    if dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: write one of {', '.join(DTYPES)}")
    tokenizer = tokenizer_of(locate(model))
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer: activations are stored of text")
    opened, _ = open_model(model, device)
    taps = find_taps(opened, site)
    documents = [*corpus(data, "calibration"), *corpus(data, "validation")]
    windows = every_window(documents, tokenizer, length, -(-tokens // length), seed)
    about, leave = {"model": model, "data": data}, frozenset(tokenizer.all_special_ids)
    with Bar(json) as bar:
        told = bar("windows")

        def tell(row: dict) -> None:
            words = f"{row['rows']} tokens, {row['bytes'] / 1e6:.1f} MB"
            lines([row]) if json else told(row["windows"], row["of"], words)

        store(opened, taps, windows, out, DTYPES[dtype][0], leave, about, seed, force=force, told=tell)
    note(
        f"written: {out}; learn from it with `fewer train features/... --store {out}`, read it with fewer.train.Stored({str(out)!r})"
    )
