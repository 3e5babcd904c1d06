"""fewer train weights/...: masks, learnt through the loss of the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewer.core import Budget, Method

from ._bar import Bar, both, loss
from ._print import lines, note
from ._text import LEARNT, tokenizer_for


def masks(
    pupil: Method,
    kept: Budget,
    model: str,
    out: Path,
    data: tuple[str, int, int],
    run: tuple[int, float, int, int],
    batch: int,
    where: str,
    prior: str | None,
    device: str,
    force: bool,
    json: bool,
    board: Callable[[Any], None] | None,
) -> None:
    """Learn and write them, and say what to write in a step then.

    `data` is the corpus, how many windows, and how long they are; `run` the steps, the rate, what a step accumulates, the seed.
    """
    from fewer.core.spell import spell
    from fewer.recipe import step
    from fewer.train import Cosine, Training, learner_of

    teacher, first, (steps, rate, accumulate, seed) = learner_of(type(pupil)), prior and step(prior), run
    if out.suffix != ".npz":
        raise ValueError(f"{out}: its name must end in .npz")
    how = Training(steps, Cosine(rate, rate / 10), accumulate, seed=seed)
    with Bar(json) as bar:
        told = both(board, (lambda row: lines([row])) if json else loss(bar("learning")))
        dense, tokens = opened(model, device, data, seed)
        known = _known(dense, first, where, tokens) if first else None
        job = teacher(dense, out, where, how, known, told=told, force=force)
        learnt = job.fit(pupil, kept, list(tokens.split(batch)))
    note(f'written: {out}; use it as "{spell(learnt)} {kept}{"" if where == "*" else f" @ {where}"}"')


def opened(model: str, device: str, data: tuple[str, int, int], seed: int) -> tuple[Any, Any]:
    """The model, and windows of text to learn from."""
    from fewer.data import corpus
    from fewer.data import windows as cut
    from fewer.models import open_model

    source, windows, length = data
    tokenizer = tokenizer_for(model, LEARNT)
    tokens = cut(corpus(source, "calibration"), tokenizer, length, windows, seed)
    return open_model(model, device)[0], tokens


def _known(model: Any, first: Any, where: str, tokens: Any) -> dict[str, Any]:
    """The masks of a step, by site; the model is dense again afterwards."""
    from fewer.models import sites
    from fewer.recipe import apply

    calibration = tokens[: max(1, 12288 // tokens.shape[1])].to(next(model.parameters()).device)
    note(f"choosing first masks by {first}")
    with apply(model, [first], calibration):
        return {site.name: site.read() != 0 for site in sites(model, where)}
