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
    forms: tuple[str, str, str]  # how it reads, what its atoms may be, where it begins
    hide: float  # the share of columns that who speaks does not see
    keep: str  # what it is learnt for
    begin: str | None  # a dictionary
    boost: str | None  # a dictionary
    groups: int | None
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
    from fewer.train import ByLatents, ByRows, Lesson, Pupil
    from fewer.train.kept import Kept
    from fewer.train.sharing import ALONE

    from ._train_groups import groups
    from ._train_source import live, stored
    from ._train_ways import Run, way_of
    from .sparsify import _of_mine

    way, shares = way_of(wanted), {"rows": ByRows, "latents": ByLatents}
    if wanted.groups:
        return groups(sparsifier, kept, model, out, data, wanted, wanted.groups, device, force, json, board)
    if wanted.share not in shares:
        raise ValueError(f"--share {wanted.share}: write rows or latents")
    wanted, words = way.at_sites(wanted), forms(wanted)
    with launched() as crew:
        place, quiet = _of_mine(device) or "cpu", json or crew.rank > 0
        given = (wanted, BATCH, place, json)
        stream = stored(wanted.store, *given) if wanted.store else live(model, data, *given, sparsifier.feels)
        by = shares[wanted.share](crew) if crew.size > 1 else ALONE
        latents = wanted.latents or 8 * sum(stream.sites[name] for name in stream.reads or stream.sites)
        rule = (sparsifier, kept, latents)
        pupils = [Pupil(*rule, wanted.seed + i, stream.reads, stream.writes, *words) for i in range(wanted.seeds)]
        steps, rest = max(1, wanted.tokens // BATCH), {"skip": wanted.skip, "seed": wanted.seed, "hide": wanted.hide}
        if not crew.rank:
            note(_plan(pupils[0], steps, stream.distinct))
        with Bar(quiet) as bar:
            told = both(board, (lambda row: lines([row])) if json else loss(bar("learning")))
            learnt = way.learnt(pupils, stream, Run(Lesson(steps, wanted.rate, **rest), out, told, force, by))  # type: ignore[arg-type]
        if crew.rank:
            return
    _written(learnt, out, force)
    Kept(out, "").finish()
    note(f"written: {out}; look at it with `fewer explore {out}`, judge it again with `fewer judge {out}`")
    stream.judge(learnt)


def forms(wanted: Wanted) -> list[Any]:
    """Encoder, decoder and start. ValueError: a method that is something else."""
    from fewer.core.spell import method_of
    from fewer.features import Decoder, Encoder, Start

    found, kinds = [], (Encoder, Decoder, Start)
    for option, text, kind in zip(("encoder", "decoder", "start"), wanted.forms, kinds, strict=True):
        found.append(method_of(text, "features"))
        if not isinstance(found[-1], kind):
            raise ValueError(f"--{option} {text}: this is no {option}; see `fewer methods features`")
    return found


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
