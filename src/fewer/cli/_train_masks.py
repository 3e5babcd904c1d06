"""fewer train weights/...: masks, learnt through the loss of the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewer.core import Budget, Method

from ._print import note
from ._text import LEARNT, tokenizer_for


def masks(
    pupil: Method,
    kept: Budget,
    model: str,
    out: Path,
    data: tuple[str, int, int],
    how: Any,
    batch: int,
    where: str,
    prior: str | None,
    device: str,
    told: Callable[[Any], None],
    force: bool = False,
) -> str:
    """Learn and write them; what to write in a step then. `data` is the corpus, how many windows, and how long they are."""
    from fewer.core.spell import spell
    from fewer.recipe import step
    from fewer.train import learner_of

    teacher, first = learner_of(type(pupil)), prior and step(prior)
    if out.suffix != ".npz":
        raise ValueError(f"{out}: its name must end in .npz")
    dense, tokens = _opened(model, device, data, how.seed)
    known = _known(dense, first, where, tokens) if first else None
    learnt = teacher(dense, out, where, how, known, told=told, force=force).fit(pupil, kept, list(tokens.split(batch)))
    return f'written: {out}; use it as "{spell(learnt)} {kept}{"" if where == "*" else f" @ {where}"}"'


def _opened(model: str, device: str, data: tuple[str, int, int], seed: int) -> tuple[Any, Any]:
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
