"""Learning dictionaries: many at once from one stream of activations, each with its own latents, sparsifier and budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.features import Dictionary

from .kept import Kept
from .known import Known
from .loop import Told, Training, train
from .one import One
from .pupil import PLAIN, Lesson, Pupil
from .rate import Trapezoid
from .rows import RowAdam
from .sharing import ALONE, Sharing
from .source import Source

FIRST = 16  # batches from which mean and scale are taken
HELD = 32  # batches after the last that training sees, for what inference needs
RATE = 0.05  # of the entries of a row of length one, which are about 1 / sqrt(dim)
WARM = 0.02  # the share of the run in which the rate rises


def learn(
    pupils: Sequence[Pupil],
    source: Source,
    lesson: Lesson = PLAIN,
    sites: Mapping[str, int] | None = None,
    together: bool = False,
    out: str | Path | None = None,
    told: Told | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
    by: Sharing = ALONE,
    unseen: Source | None = None,
    force: bool = False,
) -> list[Dictionary]:
    """Many dictionaries from one stream, in which `sites` (name: columns) stand side by side; one site needs no name.

    Each explains what it writes by itself; or, `together`, what they write at a site adds up: a cross-layer transcoder is
    one dictionary a layer that reads there and writes there and at all later layers.

    With `out`, the state lies in `OUT.partial` and a killed run goes on to the bit; each step is a line of `OUT.jsonl`.
    A state of other settings is replaced only by `force`.
    Thresholds for inference settle on the first batches of `unseen`, by default on those after the last; if these were seen
    before, new inputs come to speak with some percent more latents (docs/LOG.md).
    Several processes that share the work (`by`, see `ByRows` and `ByLatents`) all call this, and all get what was learnt.
    Activations are seen about their mean and scaled, each site, to E|x|^2 = dim; what comes back reads and writes plain ones.
    """
    if not pupils:
        raise ValueError("there is no dictionary to learn: give at least one Pupil")
    first = [batch for batch, _ in zip(source, range(FIRST), strict=False)]
    known = Known.of(torch.cat(first), sites or {"": first[0].shape[1]})
    later = _later(unseen, first[0].shape[1]) if unseen else None
    by.check(pupils, lesson, len(first[0]), together)
    several = [One(pupil.at([*known.sites]), known, lesson, len(first[0]), by) for pupil in pupils]
    parameters = {f"{i}/{name}": t for i, one in enumerate(several) for name, t in one.tensors.items()}
    matrices = [f"{i}/{name}" for i, one in enumerate(several) for name in one.rows]
    optimizer = RowAdam(parameters, matrices, [f"{i}/decoder" for i in range(len(several))])
    compare = summed if together else apart

    def loss(batch: Tensor, progress: float) -> Tensor:
        return by.loss(compare(several, known, known.seen(batch), progress))

    widest = max(one.tensors["encoder"].shape[1] for one in several)
    rate = Trapezoid(lesson.rate or RATE / math.sqrt(widest), WARM)
    how = Training(lesson.steps, rate, clip=math.inf, seed=lesson.seed, half=lesson.half, save_after=lesson.save_after)
    how = replace(how, tf32=lesson.tf32)
    key = f"{pupils} {replace(lesson, save_after=0.0)} {known.mean.double().sum().item()!r} {sites} {together}"
    kept, told = Kept(out, key, by, force) if out else None, None if by.crew.rank else told
    train(parameters, loss, by.read(source), how, kept, told, optimizer, by)
    later = later or [batch for batch, _ in zip(source.since(lesson.steps), range(HELD), strict=False)]
    held = known.seen(torch.cat(later))
    note = {**about, "tokens": lesson.steps * len(first[0])}
    return [
        one.done(held, note, [o.pupil.writes for o in several[:i]] if together else []) for i, one in enumerate(several)
    ]


def _later(unseen: Source, width: int) -> list[Tensor]:
    """The first batches of the held-out data. ValueError: they are not as wide as the others, or not finite."""
    try:
        held = [batch for batch, _ in zip(unseen, range(HELD), strict=False)]
        if (found := held[0].shape[1]) != width:
            raise ValueError(f"rows of {found} columns, those that are learnt from have {width}")
        if not all(batch.isfinite().all() for batch in held):
            raise ValueError("an activation is NaN or infinite")
    except ValueError as wrong:
        raise ValueError(f"the held-out data (`unseen`), on which thresholds settle: {wrong}") from wrong
    return held


def apart(several: Sequence[One], known: Known, rows: Float[Tensor, "n dim"], progress: float) -> Tensor:
    """Each for itself; the sum over all."""
    return torch.stack([one.loss(rows, progress) for one in several]).sum()


def summed(several: Sequence[One], known: Known, rows: Float[Tensor, "n dim"], progress: float) -> Tensor:
    """What they write at each site, added up, against what is there: the mean over all columns that somebody writes."""
    left = {name: rows[:, at] for name, at in known.sites.items()}
    for one in several:
        said = one.says(rows)
        widths = [known.sites[name].stop - known.sites[name].start for name in one.pupil.writes]
        for name, part in zip(one.pupil.writes, said.split(widths, 1), strict=True):
            left[name] = left[name] - part
    written = dict.fromkeys(name for one in several for name in one.pupil.writes)
    error = torch.cat([left[name] for name in written], 1)
    dead = [one.of_the_dead(rows, torch.cat([left[name] for name in one.pupil.writes], 1).detach()) for one in several]
    return error.square().mean() + torch.stack(dead).sum()
