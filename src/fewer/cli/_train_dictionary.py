"""fewer train features/...: a dictionary, learnt on what a model says at some sites."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewer.core import Budget

from ._bar import Bar, both, loss
from ._print import lines, note
from ._text import LEARNT, tokenizer_for

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
    """Learn one, write it, and judge it: once it lies on the disk, nothing that comes later can lose it."""
    from fewer.models import open_model
    from fewer.train import Lesson, Live, learn
    from fewer.train.dictionaries import HELD
    from fewer.train.kept import Kept

    from .judge import judge_all, unseen

    if not wanted.reads:
        raise ValueError("--site is missing: say what the dictionary reads, such as --site layers.4")
    tokenizer = tokenizer_for(model, LEARNT)
    opened, _ = open_model(model, device)
    pupil, taps = _pupil(sparsifier, kept, opened, wanted)
    text = _windows(data, tokenizer, wanted)
    test = unseen(data[0], tokenizer, data[1], wanted.test) if wanted.test else None
    special, later = frozenset(tokenizer.all_special_ids), min(HELD * BATCH // data[1], max(1, len(text) // 5))
    source, unseen = (
        Live(opened, [*taps], some, BATCH, special, seed=wanted.seed) for some in (text[:-later], text[-later:])
    )
    lesson = Lesson(max(1, wanted.tokens // BATCH), wanted.rate, skip=wanted.skip, seed=wanted.seed)
    note(_plan(pupil, lesson.steps, source.windows.numel()))
    pupils = [replace(pupil, seed=wanted.seed + i) for i in range(wanted.seeds)]
    about = {"model": model, "data": data[0], "length": data[1], "distinct": source.windows.numel()}
    sites = {str(tap): width for tap, width in taps.items()}
    with Bar(json) as bar:
        told: Callable[[Any], None] = (lambda row: lines([row])) if json else loss(bar("learning"))
        learnt = learn(
            pupils, source, lesson, sites, out=out, told=both(board, told), about=about, unseen=unseen, force=force
        )
    _written(learnt, out, force)
    Kept(out, "").finish()
    note(f"written: {out}; look at it with `fewer explore {out}`, judge it again with `fewer judge {out}`")
    if test is not None:
        judge_all(learnt, opened, tokenizer, test, data[0], json)


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


def _pupil(sparsifier: "Sparsifier", kept: Budget, model: Any, wanted: Wanted) -> tuple[Any, dict[Any, int]]:
    """What is to be learnt, and how wide each site is; what does not fit together is refused here."""
    from fewer.dictionaries.fit import widths
    from fewer.models import find_taps
    from fewer.train import Pupil

    reads, writes = find_taps(model, wanted.reads), find_taps(model, wanted.writes)
    wide = widths(model, [*reads, *writes])
    latents = wanted.latents or 8 * sum(wide[tap] for tap in reads)
    names = tuple(map(str, reads)), tuple(map(str, writes or reads))
    return Pupil(sparsifier, kept, latents, wanted.seed, *names), {
        tap: wide[tap] for tap in dict.fromkeys([*reads, *writes])
    }


def _plan(pupil: Any, steps: int, distinct: int) -> str:
    """How much is learnt from how much text.

    >>> from types import SimpleNamespace
    >>> _plan(SimpleNamespace(latents=64, reads=("layers.4",), writes=("layers.4",)), 8, 4096)
    '64 latents for layers.4: 8 steps of 1,024 tokens, from a text of 4,096, seen 2.0 times'
    """
    tokens = steps * BATCH
    seen = f", seen {tokens / distinct:.1f} times" if tokens > distinct else ""
    where = ", ".join(pupil.reads) + ("" if pupil.reads == pupil.writes else f" -> {', '.join(pupil.writes)}")
    return (
        f"{pupil.latents:,} latents for {where}: {steps:,} steps of {BATCH:,} tokens, from a text of {distinct:,}{seen}"
    )


def _windows(data: tuple[str, int], tokenizer: Any, wanted: Wanted) -> Any:
    """As many windows as are asked for, or as there are, of the parts that no test reads; and some more, to settle on."""
    from fewer.data import corpus, every_window
    from fewer.train.dictionaries import HELD

    source, length = data
    documents = [*corpus(source, "calibration"), *corpus(source, "validation")]
    return every_window(documents, tokenizer, length, -(-(wanted.tokens + HELD * BATCH) // length), wanted.seed)
