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

    from ._train_ways import Way

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
    keep: str = "error"
    begin: str | None = None
    boost: str | None = None
    groups: int | None = None
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
    from fewer.train import Lesson
    from fewer.train.dictionaries import HELD
    from fewer.train.kept import Kept

    from ._train_groups import groups
    from ._train_ways import Said
    from .judge import judge_all, unseen

    way = _way(wanted)
    if wanted.groups:
        return groups(sparsifier, kept, model, out, data, wanted, wanted.groups, device, force, json, board)
    wanted = way.at_sites(wanted)
    if not wanted.reads:
        raise ValueError("--site is missing: say what the dictionary reads, such as --site layers.4")
    tokenizer = tokenizer_for(model, LEARNT)
    opened, _ = open_model(model, device)
    pupil, taps = _pupil(sparsifier, kept, opened, wanted)
    text = _windows(data, tokenizer, wanted)
    test = unseen(data[0], tokenizer, data[1], wanted.test) if wanted.test else None
    special, later = frozenset(tokenizer.all_special_ids), min(HELD * BATCH // data[1], max(1, len(text) // 5))
    said = Said(opened, taps, text[:-later], text[-later:], special, wanted.seed, force)
    lesson = Lesson(max(1, wanted.tokens // BATCH), wanted.rate, skip=wanted.skip, seed=wanted.seed, hide=wanted.hide)
    note(_plan(pupil, lesson.steps, said.text.numel()))
    pupils = [replace(pupil, seed=wanted.seed + i) for i in range(wanted.seeds)]
    about = {"model": model, "data": data[0], "length": data[1], "distinct": said.text.numel()}
    with Bar(json) as bar:
        told: Callable[[Any], None] = (lambda row: lines([row])) if json else loss(bar("learning"))
        learnt = way.learnt(pupils, said, lesson, out, both(board, told), about)
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


def _way(wanted: Wanted) -> "Way":
    """How it is learnt. ValueError: options that say two things at once."""
    from fewer.dictionaries import load

    from ._train_ways import AIMS, Boost, Plain, Through

    if wanted.keep not in ("error", *AIMS):
        raise ValueError(f"--loss {wanted.keep}: write error, {' or '.join(AIMS)}")
    through = wanted.keep != "error"
    if wanted.begin and not through:
        raise ValueError("--from goes with --loss kl or ce")
    if wanted.seeds > 1 and (through or wanted.boost or wanted.groups):
        raise ValueError("--seeds goes with --loss error, without --boost and --groups")
    if wanted.boost and (through or wanted.reads or wanted.writes or wanted.skip):
        raise ValueError(
            "--boost has the sites of its dictionary, and learns its error: without --site, --to, --skip, --loss"
        )
    if wanted.boost:
        return Boost(load(wanted.boost))
    return Through(AIMS[wanted.keep](), load(wanted.begin) if wanted.begin else None) if through else Plain()


def _pupil(sparsifier: "Sparsifier", kept: Budget, model: Any, wanted: Wanted) -> tuple[Any, dict[Any, int]]:
    """What is to be learnt, and how wide each site is; what does not fit together is refused here."""
    from fewer.dictionaries.fit import widths
    from fewer.models import find_taps
    from fewer.train import Pupil

    reads, writes = find_taps(model, wanted.reads), find_taps(model, wanted.writes)
    wide = widths(model, [*reads, *writes])
    latents = wanted.latents or 8 * sum(wide[tap] for tap in reads)
    names = tuple(map(str, reads)), tuple(map(str, writes or reads))
    slopes = {replace(tap, gradient=True): wide[tap] for tap in reads if sparsifier.feels}
    return Pupil(sparsifier, kept, latents, wanted.seed, *names, *_forms(wanted)), {
        **{tap: wide[tap] for tap in dict.fromkeys([*reads, *writes])},
        **slopes,
    }


def _forms(wanted: Wanted) -> list[Any]:
    """Encoder, decoder and start. ValueError: a method that is something else."""
    from fewer.core.spell import method_of
    from fewer.features import Decoder, Encoder, Start

    found = []
    for option, text, kind in zip(
        ("encoder", "decoder", "start"), wanted.forms, (Encoder, Decoder, Start), strict=True
    ):
        found.append(method_of(text, "features"))
        if not isinstance(found[-1], kind):
            raise ValueError(f"--{option} {text}: this is no {option}; see `fewer methods features`")
    return found


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
