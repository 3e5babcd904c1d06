"""fewer explore: look at what a dictionary has learnt, feature by feature."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ._bar import Bar
from ._print import Json, lines, note
from ._text import Data, Length
from .judge import DICTIONARY, model_for

INDEX = "Where the index of features is kept: OUT with the ending .index by default. One that is there already is used."


def explore(
    ctx: typer.Context,
    dictionary: Annotated[str, typer.Argument(help=DICTIONARY)],
    model: Annotated[
        str | None,
        typer.Option(help="'bundled', a directory, or a name on the hub; what the dictionary says by default."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write; its name ends in .html.")] = Path(
        "features.html"
    ),
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it exists, once the new one is whole.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=2, help="How many tokens are read.")] = 250_000,
    length: Length = 256,
    data: Data = "stdlib",
    index: Annotated[Path | None, typer.Option(help=INDEX)] = None,
    neuronpedia: Annotated[
        Path | None, typer.Option(help="Also write Neuronpedia's batch-*.json, in this directory.")
    ] = None,
    delphi: Annotated[
        Path | None, typer.Option(help="Also write delphi's cache of latents, in this directory.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the text.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Write one HTML file that opens offline: a table of all features to search and sort, and a page for each.

    The model reads the text once; where each feature speaks is kept in an index beside the page, at most 8 bytes a nonzero.
    Stop it with Ctrl-C and go on later with the same command.

    Example: `fewer explore my-dictionary --tokens 1000000 --out features.html`
    """
    index = index or out.with_suffix(".index")
    _check(out, force, [p for p in (neuronpedia, delphi) if p])
    from fewer.dictionaries import load
    from fewer.dictionaries.explore import indexed

    learnt = load(dictionary)
    name, opened, tokenizer = model_for(dictionary, [learnt], model, device, "features are looked at on text")
    windows = _windows(data, tokenizer, length, max(1, tokens // length), seed)
    with Bar(json) as bar:
        found = indexed(learnt.to(device), opened, windows, index, tokenizer.all_special_ids, bar("reading"))
        seen = _Seen(learnt, opened, found, lambda ids: tokenizer.batch_decode([[i] for i in ids]), name, data)
        seen.page(out, ctx.obj or [], bar("writing"))
    if neuronpedia:
        seen.neuronpedia(neuronpedia)
    if delphi:
        seen.delphi(delphi)
    row = seen.row(out, index)
    lines([row]) if json else print(_sentence(row))


def _check(out: Path, force: bool, others: Sequence[Path]) -> None:
    """Refuse, before minutes of work, what cannot be written."""
    if out.suffix != ".html":
        raise ValueError(f"{out}: its name must end in .html")
    for path in (out, *others):
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{path.parent} is no directory to write {path.name} in")
        if path.exists() and not (force and path is out):
            raise ValueError(f"{path} exists; " + ("write --force to replace it" if path is out else "remove it first"))


def _windows(data: str, tokenizer: Any, length: int, count: int, seed: int) -> Any:
    from fewer.data import corpus, windows

    return windows(corpus(data), tokenizer, length, count, seed)


class _Seen:
    """A dictionary that was looked at, and the ways to show it."""

    def __init__(self, learnt: Any, model: Any, index: Any, words: Any, name: str, data: str):
        self.learnt, self.model, self.index, self.words, self.name, self.data = learnt, model, index, words, name, data
        self.site = " + ".join(learnt.reads)

    def facts(self) -> Any:
        from fewer.dictionaries.facts import facts, unembedding_of

        return facts(self.index, self.learnt, unembedding_of(self.model))

    def page(self, out: Path, arguments: list[str], told: Any) -> None:
        from fewer.report import explorer

        from ._about import about

        windows, length = self.index.tokens.shape
        of = f"{type(self.learnt.sparsifier).name} {self.learnt.budget} of {self.learnt.latents:,}"
        words = about(self.name, f"{self.data}, {windows} windows of {length} tokens", arguments)

        def rows() -> Any:
            for f in self.facts():
                told(f.feature + 1, self.index.features)
                yield f.plain()

        what = {"dictionary": of, "read at": self.site}
        explorer(out, rows(), self.words, what | words, f"{of} at {self.site}")

    def neuronpedia(self, out: Path) -> None:
        import re

        from fewer.dictionaries.neuronpedia import Source, to_neuronpedia

        layer = re.search(r"\.(\d+)(?:\.|:|$)", f".{self.site}")
        source = Source(self.name, int(layer[1]) if layer else 0, "fewer", None, self.data)
        to_neuronpedia(self.index, self.learnt, self.facts(), self.words, out, source)
        note(f"written: {out}")

    def delphi(self, out: Path) -> None:
        from fewer.dictionaries.delphi import to_delphi

        splits = min(5, self.index.features)
        to_delphi(self.index, out, self.learnt.reads[0], splits, {"model_name": self.name, "dataset_repo": self.data})
        note(f"written: {out}")

    def row(self, out: Path, index: Path) -> dict[str, Any]:
        found = self.index
        return {
            "page": str(out),
            "bytes": out.stat().st_size,
            "index": str(index),
            "features": found.features,
            "silent": int((found.counts == 0).sum()),
            "tokens": found.seen,
            "nonzeros": found.nonzeros,
            "bytes_a_nonzero": found.bytes / found.nonzeros,
        }


def _sentence(row: dict[str, Any]) -> str:
    from fewer.report.table import size

    silent = f", {row['silent']:,} of them silent" if row["silent"] else ""
    return (
        f"{row['page']}: {row['features']:,} features{silent} on {row['tokens']:,} tokens, {size(row['bytes'])}\n"
        f"{row['index']}: {row['nonzeros']:,} nonzeros, {row['bytes_a_nonzero']:.2f} bytes each"
    )
