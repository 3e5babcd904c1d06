"""Learning dictionaries: many at once from one stream of activations, each with its own latents, sparsifier and budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fewer.features import Dictionary
from fewer.features.boosted import Boosted
from fewer.features.codebook import Codebook
from fewer.features.free import Free
from fewer.features.linear import Linear

from .kept import Kept
from .known import Known
from .loop import Loss, Told, Training, train
from .one import One
from .pupil import PLAIN, Lesson, Pupil
from .rate import Trapezoid
from .rows import RowAdam
from .sharing import ALONE, Sharing
from .source import Source
from .together import APART, Mutual, Together

FIRST = 16  # batches from which mean and scale are taken
HELD = 32  # batches after the last that training sees, for what inference needs
RATE = 0.05  # of the entries of a row of length one, which are about 1 / sqrt(dim)
WARM = 0.02  # the share of the run in which the rate rises


def learn(
    pupils: Sequence[Pupil],
    source: Source,
    lesson: Lesson = PLAIN,
    sites: Mapping[str, int] | None = None,
    together: Together = APART,
    out: str | Path | None = None,
    told: Told | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
    by: Sharing = ALONE,
    unseen: Source | None = None,
    force: bool = False,
) -> list[Dictionary]:
    """Many dictionaries from one stream, in which `sites` (name: columns) stand side by side; one site needs no name.

    Each explains what it writes by itself; `together=Summed()` adds up what they write at a site, `Mutual(0.1)` draws their
    atoms to each other.

    With `out`, the state lies in `OUT.partial` and a killed run goes on to the bit; each step is a line of `OUT.jsonl`.
    A state of other settings is replaced only by `force`.
    Thresholds for inference settle on the first batches of `unseen`, by default on those after the last; if these were seen
    before, new inputs come to speak with some percent more latents (docs/LOG.md).
    Several processes that share the work (`by`, see `ByRows` and `ByLatents`) all call this, and all get what was learnt.
    Activations are seen about their mean and scaled, each site, to E|x|^2 = dim; what comes back reads and writes plain ones.
    """
    if not pupils:
        raise ValueError("there is no dictionary to learn: give at least one Pupil")
    first = source.first(FIRST)
    rows = torch.cat(first)
    known = Known.of(rows, sites or {"": first[0].shape[1]})
    later = _later(unseen, first[0].shape[1]) if unseen else None
    if by is not ALONE:
        _check_shared(pupils, lesson, together)
    by.check(pupils, lesson, len(first[0]), together.adds)
    several = [One(pupil.at([*known.sites]), known, lesson, len(first[0]), by, rows) for pupil in pupils]

    def loss(batch: Tensor, progress: float) -> Tensor:
        return by.loss(together.loss(several, known, known.seen(batch), progress))

    key = f"{pupils} {known.mean.double().sum().item()!r} {sites} {together}"
    taught(several, loss, source, lesson, key, out, told, by, force, together == APART)
    held = known.seen(torch.cat(later or source.first(HELD, lesson.steps)))
    note = {**about, "tokens": lesson.steps * len(first[0])}
    return [
        one.done(held, note, [o.pupil.writes for o in several[:i]] if together.adds else [])
        for i, one in enumerate(several)
    ]


def taught(
    several: Sequence[One],
    loss: Loss,
    source: Source,
    lesson: Lesson,
    key: str,
    out: str | Path | None = None,
    told: Told | None = None,
    by: Sharing = ALONE,
    force: bool = False,
    alike: bool = False,
) -> None:
    """Teach dictionaries what lowers `loss(batch, progress)`; with `out`, a run of the same `key` that was killed goes on.

    `alike`: besides what each of them says in `One.loss`, nothing is done that a GPU could not repeat as it was recorded.

    ValueError: a rule that is not learnt so.
    """
    for m in (one.pupil.sparsifier for one in several):
        if isinstance(m, Codebook | Boosted):
            way = "with its model: learn_codebooks" if isinstance(m, Codebook) else "in parts: learn_boost"
            raise ValueError(f"{m.name} is learnt {way} (fewer.train)")
    parameters = {f"{i}/{name}": t for i, one in enumerate(several) for name, t in one.tensors.items()}
    matrices = [f"{i}/{name}" for i, one in enumerate(several) for name in one.rows]
    optimizer = RowAdam(parameters, matrices, [name for name in parameters if name.endswith("/decoder")])
    widest = max(one.tensors["encoder"].shape[1] for one in several)
    rate = Trapezoid(lesson.rate or RATE / math.sqrt(widest), WARM)
    how = Training(lesson.steps, rate, clip=math.inf, seed=lesson.seed, half=lesson.half, save_after=lesson.save_after)
    how = replace(how, tf32=lesson.tf32)

    def kinds(step: int) -> tuple[int, ...] | None:
        each = [one.kind(step) if alike else None for one in several]
        return tuple(kind for kind in each if kind is not None) if None not in each else None

    kept = Kept(out, f"{key} {replace(lesson, save_after=0.0)}", by, force) if out else None
    train(parameters, loss, by.read(source), how, kept, None if by.crew.rank else told, optimizer, by, kinds)


def _later(unseen: Source, width: int) -> list[Tensor]:
    """The first batches of the held-out data. ValueError: they are not as wide as the others, or not finite."""
    try:
        held = unseen.first(HELD)
        if (found := held[0].shape[1]) != width:
            raise ValueError(f"rows of {found} columns, those that are learnt from have {width}")
        if not all(batch.isfinite().all() for batch in held):
            raise ValueError("an activation is NaN or infinite")
    except ValueError as wrong:
        raise ValueError(f"the held-out data (`unseen`), on which thresholds settle: {wrong}") from wrong
    return held


def _check_shared(pupils: Sequence[Pupil], lesson: Lesson, together: Together) -> None:
    """ValueError: what several processes cannot learn together yet."""
    for p in pupils:
        for value, known in ((p.encoder, Linear), (p.decoder, Free)):
            if not isinstance(value, known):
                raise ValueError(f"{value.name} is learnt in one process: several share {known.name} alone")
    if lesson.hide or isinstance(together, Mutual):
        what = f"hide={lesson.hide}" if lesson.hide else f"{together}"
        raise ValueError(f"{what} is learnt in one process: leave it out, or learn without by=...")
