"""fewer train features/...: a dictionary, learnt on what a model says at some sites."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewer.core import Budget

from ._bar import Bar, both, loss
from ._print import lines, note

if TYPE_CHECKING:
    from fewer.features import Sparsifier

BATCH = 1024  # tokens in a step


@dataclass(frozen=True)
class Wanted:
    """What the options of dictionaries say."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    latents: int | None
    tokens: int
    rate: float | None
    seed: int
    skip: bool
    test: int  # windows to judge on
    seeds: int = 1  # so many dictionaries, from one stream
    store: Path | None = None
    share: str = "rows"


def dictionary(
    sparsifier: "Sparsifier",
    kept: Budget,
    model: str,
    out: Path,
    data: tuple[str, int],
    wanted: Wanted,
    device: str,
    force: bool,
    json: bool,
    board: Callable[[Any], None] | None = None,
) -> None:
    """Learn one, write it, and judge it: once it lies on the disk, nothing that comes later can lose it.

    The processes that torchrun started share the work (`wanted.share`); the first writes and judges.
    """
    from fewer.calibrate import launched
    from fewer.train import ByLatents, ByRows, Lesson, Pupil, learn
    from fewer.train.kept import Kept
    from fewer.train.sharing import ALONE

    from ._train_source import live, stored
    from .sparsify import _of_mine

    shares = {"rows": ByRows, "latents": ByLatents}
    if wanted.share not in shares:
        raise ValueError(f"--share {wanted.share}: write rows or latents")
    with launched() as crew:
        place, quiet = _of_mine(device) or "cpu", json or crew.rank > 0
        stream = (
            stored(wanted.store, wanted, BATCH, place, json)
            if wanted.store
            else live(model, data, wanted, BATCH, place, json)
        )
        by = shares[wanted.share](crew) if crew.size > 1 else ALONE
        latents = wanted.latents or 8 * sum(stream.sites[name] for name in stream.reads or stream.sites)
        lesson = Lesson(max(1, wanted.tokens // BATCH), wanted.rate, skip=wanted.skip, seed=wanted.seed)
        pupils = [
            Pupil(sparsifier, kept, latents, wanted.seed + i, stream.reads, stream.writes) for i in range(wanted.seeds)
        ]
        if not crew.rank:
            note(_plan(pupils[0], lesson.steps, stream.distinct))
        with Bar(quiet) as bar:
            told: Callable[[Any], None] = (lambda row: lines([row])) if json else loss(bar("learning"))
            given = {"out": out, "told": both(board, told), "about": stream.about, "by": by, "unseen": stream.unseen}
            learnt = learn(pupils, stream.source, lesson, stream.sites, force=force, **given)  # type: ignore[arg-type]
        if crew.rank:
            return
    _written(learnt, out, force)
    Kept(out, "").finish()
    note(f"written: {out}; look at it with `fewer explore {out}`, judge it again with `fewer judge {out}`")
    stream.judge(learnt)


def _written(learnt: list[Any], out: Path, force: bool) -> None:
    """One at OUT, several in OUT/0, OUT/1 and so on; whole or not at all."""
    from fewer.dictionaries import save
    from fewer.dictionaries._disk import whole

    if len(learnt) == 1:
        save(learnt[0], out, force=force)
        return
    with whole(out.absolute()) as part:
        for number, one in enumerate(learnt):
            save(one, part / str(number))


def _plan(pupil: Any, steps: int, distinct: int) -> str:
    """How much is learnt from how much text.

    >>> from types import SimpleNamespace
    >>> _plan(SimpleNamespace(latents=64, reads=("layers.4",), writes=("layers.4",)), 8, 4096)
    '64 latents for layers.4: 8 steps of 1,024 tokens, from a text of 4,096, seen 2.0 times'
    """
    tokens = steps * BATCH
    seen = f", seen {tokens / distinct:.1f} times" if tokens > distinct else ""
    where = ", ".join(pupil.reads or ("all columns",)) + (
        "" if pupil.reads == pupil.writes else f" -> {', '.join(pupil.writes)}"
    )
    return (
        f"{pupil.latents:,} latents for {where}: {steps:,} steps of {BATCH:,} tokens, from a text of {distinct:,}{seen}"
    )
