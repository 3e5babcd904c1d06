"""fewer judge: how good a dictionary is, beside controls of its size."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._bar import Bar
from ._print import Json, lines, note, table
from ._text import DATA, tokenizer_for

if TYPE_CHECKING:
    from fewer.features import Dictionary

DICTIONARY = "The directory of a dictionary in any form, or 'hf:owner/name/folder'; several that differ in their seed are judged together."
MODEL = "'bundled', a directory, or a name on the hub; what the dictionary says by default."
SITE = "What it reads, if it does not say so or a name that the model does not have; repeat for several."
TO = "What it writes, if not what it reads."
TEXT = f"{DATA} Its test part; what the dictionary says by default, else 'stdlib'."
LENGTH = "Tokens in a window; as the dictionary was learnt by default, else 256."
TEST = "Windows of text to judge on."

HEAD = {  # a column and what stands above it
    "name": "",
    "l0": "L0",
    "explained": "explained",
    "recovered_mean": "CE recovered (mean)",
    "recovered_zero": "(zeros)",
    "delta_ce": "delta CE",
    "kl": "KL",
    "dead": "dead latents",
    "dense": "dense latents",
}
SHARES = ("dead", "dense")
ARROW = {"higher": " ↑", "lower": " ↓"}  # which way is better


def judge(
    dictionary: Annotated[list[str], typer.Argument(help=DICTIONARY)],
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    site: Annotated[list[str] | None, typer.Option(help=SITE)] = None,
    to: Annotated[list[str] | None, typer.Option(help=TO)] = None,
    data: Annotated[str | None, typer.Option("--data", help=TEXT)] = None,
    test: Annotated[int, typer.Option(min=1, help=TEST)] = 64,
    length: Annotated[int | None, typer.Option(min=2, help=LENGTH)] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Judge a dictionary on text, beside a random one, principal components, and the model as it is.

    Nothing is learnt or written. Of several dictionaries each is judged; one for several layers, at each. Those that differ in
    nothing but their seed come into one table, with their mean, its 95 % interval over seeds, and the share of latents that
    all seeds find.

    Examples: `fewer judge sae` · `fewer judge sae-0 sae-1 sae-2` · `fewer judge hf:owner/name/folder --model gpt2 --data hf:owner/text/train:text`
    """
    from dataclasses import replace

    from fewer.dictionaries import load_all
    from fewer.dictionaries.layered import at_layers

    several = [at for place in dictionary for d in load_all(place) for at in at_layers(d)]
    if site:
        several = [replace(d, reads=tuple(site), writes=tuple(to or site)) for d in several]
    about = several[0].about
    source, width = data or str(about.get("data") or "stdlib"), length or _number(about.get("length")) or 256
    _, opened, tokenizer = model_for(", ".join(dictionary), several, model, device, "dictionaries are judged on text")
    text = unseen(source, tokenizer, width, test)
    judge_all(several, opened, tokenizer, text, source, json)


def model_for(
    place: object, several: Sequence["Dictionary"], model: str | None, device: str, why: str
) -> tuple[str, Any, Any]:
    """The model of dictionaries: its name, itself, its tokenizer. ValueError: nobody names it, or they do not fit it."""
    from fewer.dictionaries.fit import fit
    from fewer.models import open_model

    name = model or several[0].about.get("model")
    if not isinstance(name, str):
        raise ValueError(f"{place} does not say which model it was learnt on: write --model")
    tokenizer = tokenizer_for(name, why)
    opened, _ = open_model(name, device)
    for d in several:
        fit(d, opened)
    return name, opened, tokenizer


def _number(x: object) -> int:
    return x if isinstance(x, int) and x > 1 else 0


def unseen(data: str, tokenizer: Any, length: int, count: int) -> Any:
    """Windows of the test part: `fewer train` never reads it."""
    from fewer.data import corpus, windows

    return windows(corpus(data, "test"), tokenizer, length, count)


def judge_all(several: Sequence["Dictionary"], model: Any, tokenizer: Any, text: Any, data: str, json: bool) -> None:
    """Together, if they are the same but for their seed; else each."""
    from fewer.dictionaries.seeds import alike, judge_seeds

    if not alike(several):
        for d in several:
            judged(d, model, tokenizer, text, data, json)
        return
    named = {f"seed {d.about.get('seed', i)}": d for i, d in enumerate(several)}
    with Bar(json) as bar:
        rows = judge_seeds(named, model, text, _special(tokenizer), told=bar("judging"))
    show(rows, several[0], data, text, json)


def _special(tokenizer: Any) -> frozenset[int]:
    return frozenset(map(int, tokenizer.all_special_ids))


def judged(dictionary: "Dictionary", model: Any, tokenizer: Any, text: Any, data: str, json: bool) -> None:
    """Judge it on windows of text, and print a row a line, or the table with what it means."""
    from fewer.dictionaries.judge import judge as rows_of

    with Bar(json) as bar:
        rows = rows_of(dictionary, model, text, _special(tokenizer), told=bar("judging"))
    show(rows, dictionary, data, text, json)


def show(rows: Sequence[Mapping[str, Any]], dictionary: "Dictionary", data: str, text: Any, json: bool) -> None:
    """A row a line, or the table with what it means."""
    what = {"reads": list(dictionary.reads), "writes": list(dictionary.writes), "data": data}
    if json:
        return lines({**row, **what} for row in rows)
    head, cells = columns(rows)
    sys.stderr.flush()
    table(head, cells, wrap=head[1:])
    note("\n".join(meaning(rows, dictionary, data, tuple(text.shape))))


def columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The head with the way each number is better, and a line of cells for each row; columns that no row fills are left out."""
    fields = [f for f in HEAD if any(f in row for row in rows)]
    better = {name: way for row in rows for name, way in row.get("better", {}).items()}
    head = [HEAD[f] + ARROW.get(better.get(f), "") for f in fields]
    return head, [[_cell(row, f) for f in fields] for row in rows]


def _cell(row: Mapping[str, Any], field: str) -> str:
    from fewer.measure import Estimate

    value, low, high = (row.get(field + end) for end in ("", "_low", "_high"))
    if value is None or field == "name":
        return "" if value is None else str(value)
    if field in SHARES:
        return f"{value:.1%}" + ("" if low is None else f" [{low:.1%}, {high:.1%}]")
    if low is None or low == high:
        return f"{value:.4g}"
    return str(Estimate(value, float(low), float(high), 2))  # type: ignore[arg-type]


def meaning(rows: Sequence[Mapping[str, Any]], d: "Dictionary", data: str, shape: tuple[int, ...]) -> list[str]:
    """What the table says of what, and what it cannot say."""
    here, last = rows[0], rows[-1]
    written = ", ".join(d.writes)
    of = written if d.reads == d.writes else f"{written} from {', '.join(d.reads)}"
    said = [
        f"{of}, on {shape[0]} windows of {shape[1]} tokens that `fewer train` does not read ({data}, test part); 95 % intervals over windows",
        f"tokens: {here['mask']}; at the others nothing is replaced or counted, but what is predicted there counts in CE and KL",
        "explained: 1 - sum |y - y_hat|^2 / sum |y - mean|^2; dead: never spoke here; dense latents: in over 10 % of the tokens",
        f"random: {d.latents} random directions, the {here['l0']:.0f} that agree most speak; pca: the {here['l0']:.0f} main components"
        + ("" if d.is_autoencoder else " of the best linear map"),
    ]
    for one in rows:
        if "stability" in one:
            said.append(
                f"mean: over {one['seeds']} seeds, 95 % interval of Student over them; stability {_cell(one, 'stability')}: the share of latents with a partner of cosine 0.7 in another seed (Hungarian matching of what they write)"
            )
    if "missing" in here:
        said.append(f"no CE and no KL: {here['missing']}, so it cannot be put into one run of the model")
    else:
        said.append(
            f"CE in nats a token: {last['ce']:.3f} dense, {last['ce_mean']:.3f} with the mean of the site in its place, {last['ce_zero']:.3f} with zeros"
        )
        for field, what in (("recovered_mean", "the mean"), ("recovered_zero", "zeros")):
            if field not in here:
                said.append(
                    f"no CE recovered against {what}: that costs the model nothing, so nothing can be recovered"
                )
    return said
