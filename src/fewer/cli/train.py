"""fewer train: learn what no formula says."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ._live import clock
from ._print import Json, lines, note
from ._text import Data, Length

PRIOR = "Begin near the masks of this step, such as 'weights/sparse_gpt 2:4': the choice only, weights stay dense."


def train(
    method: Annotated[str, typer.Argument(help="What learns: weights/mask_llm, with fields if you like.")],
    budget: Annotated[str, typer.Argument(help="How much may stay, N:M: 2:4.")],
    model: Annotated[str, typer.Argument(help="'bundled', a directory, or a name on the hub.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write; its name ends in .npz.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace OUT if it exists, once the new one is whole.")
    ] = False,
    where: Annotated[str, typer.Option(help="Which maps: '*', roles, groups or patterns.")] = "*",
    prior: Annotated[str | None, typer.Option(help=PRIOR)] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of AdamW; the paper takes 2000 of 256 windows.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Windows in a batch.")] = 4,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches in a step.")] = 1,
    rate: Annotated[
        float, typer.Option(min=0, help="Learning rate at first; it falls to a tenth along a cosine.")
    ] = 5e-4,
    windows: Annotated[int, typer.Option(min=1, help="Different windows of text to learn from.")] = 1024,
    length: Length = 256,
    data: Data = "stdlib",
    seed: Annotated[int, typer.Option(help="Of noise, first values and text.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Json = False,
) -> None:
    """Learn a method on text, with the model's weights frozen, and write what was learnt.

    A killed run goes on where it was with the same command. Each step is a line in OUT.jsonl.

    Examples: `fewer train weights/mask_llm 2:4 bundled -o masks.npz --prior "weights/sparse_gpt 2:4"` · then `fewer sparsify bundled "weights/mask_llm(file=masks.npz) 2:4" -o smaller`
    """
    from fewer.core import budget as amount
    from fewer.recipe import method_of, step
    from fewer.recipe.steps import spell
    from fewer.train import Cosine, Training, learner_of

    pupil, kept, first = method_of(method, "weights"), amount(budget), prior and step(prior)
    teacher = learner_of(type(pupil))
    _check(out, force)
    how = Training(steps, Cosine(rate, rate / 10), accumulate, seed=seed)
    dense, tokens = _opened(model, device, data, windows, length, seed)
    known = _known(dense, first, where, tokens) if first else None
    with _Bar(json) as bar:
        told = (lambda row: lines([row])) if json else bar
        learnt = teacher(dense, out, where, how, known, told=told).fit(pupil, kept, list(tokens.split(batch)))
    note(f'written: {out}; use it as "{spell(learnt)} {kept}{"" if where == "*" else f" @ {where}"}"')


def _check(out: Path, force: bool) -> None:
    """Refuse, before minutes of work, a file that cannot be written."""
    if out.suffix != ".npz":
        raise ValueError(f"{out}: its name must end in .npz")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.parent} is no directory to write {out.name} in")
    if out.exists() and not force:
        raise ValueError(f"{out} exists; write --force to replace it once the new one is whole")


def _opened(model: str, device: str, data: str, windows: int, length: int, seed: int) -> tuple[Any, Any]:
    from fewer.data import corpus
    from fewer.data import windows as cut
    from fewer.models import locate, open_model, tokenizer_of

    tokenizer = tokenizer_of(locate(model))
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer: what is learnt here is learnt on text")
    tokens = cut(corpus(data, "calibration"), tokenizer, length, windows, seed)
    return open_model(model, device)[0], tokens


def _known(model: Any, first: Any, where: str, tokens: Any) -> dict[str, Any]:
    """The masks of a step, by site; the model is dense again afterwards."""
    from fewer.models import sites
    from fewer.recipe import apply

    calibration = tokens[: max(1, 12288 // tokens.shape[1])].to(next(model.parameters()).device)
    note(f"choosing first masks by {first}")
    with apply(model, [first], calibration):
        return {site.name: site.read() != 0 for site in sites(model, where)}


class _Bar:
    """Steps, loss and time left; in a terminal a bar, elsewhere a line now and then. On stderr."""

    def __init__(self, quiet: bool):
        self.quiet, self.shown, self.said, self.began = quiet, None, 0.0, time.monotonic()
        self.first: int | None = None
        self.smooth = 0.0

    def __enter__(self) -> "_Bar":
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.shown = Progress(*columns, console=Console(stderr=True))
            self.task = self.shown.add_task("first step")
            self.shown.start()
        return self

    def __call__(self, row: Mapping[str, Any]) -> None:
        if self.first is None:
            self.first, self.smooth = row["step"] - 1, row["loss"]
        self.smooth += 0.05 * (row["loss"] - self.smooth)
        words = f"loss {self.smooth:.4f}"
        if self.shown:
            self.shown.update(self.task, description=words, completed=row["step"], total=row["steps"])
        elif not self.quiet and (time.monotonic() - self.said > 10 or row["step"] == row["steps"]):
            spent, self.said = time.monotonic() - self.began, time.monotonic()
            left = spent / (row["step"] - self.first) * (row["steps"] - row["step"])
            note(f"[{row['step']}/{row['steps']}] {words}" + (f", about {clock(left)} left" if left >= 1 else ""))

    def __exit__(self, *error: object) -> None:
        if self.shown:
            self.shown.stop()
