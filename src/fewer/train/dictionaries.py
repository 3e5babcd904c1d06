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
from fewer.features.boosted import Boosted
from fewer.features.codebook import Codebook

from .kept import Kept
from .known import Known
from .loop import Loss, Told, Training, train
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
) -> list[Dictionary]:
    """Many dictionaries from one stream, in which `sites` (name: columns) stand side by side; one site needs no name.

    Each explains what it writes by itself; or, `together`, what they write at a site adds up: a cross-layer transcoder is
    one dictionary a layer that reads there and writes there and at all later layers.

    With `out`, the state lies in `OUT.partial` and a killed run goes on to the bit; each step is a line of `OUT.jsonl`.
    Thresholds for inference settle on the first batches of `unseen`, by default on those after the last; if these were seen
    before, new inputs come to speak with some percent more latents (docs/LOG.md).
    Several processes that share the work (`by`, see `ByRows` and `ByLatents`) all call this, and all get what was learnt.
    Activations are seen about their mean and scaled, each site, to E|x|^2 = dim; what comes back reads and writes plain ones.
    """
    first = [batch for batch, _ in zip(source, range(FIRST), strict=False)]
    known = Known.of(torch.cat(first), sites or {"": first[0].shape[1]})
    by.check(pupils, lesson, len(first[0]), together)
    several = [One(pupil.at([*known.sites]), known, lesson, len(first[0]), by) for pupil in pupils]
    compare = summed if together else apart

    def loss(batch: Tensor, progress: float) -> Tensor:
        return by.loss(compare(several, known, known.seen(batch), progress))

    key = f"{pupils} {known.mean.double().sum().item()!r} {sites} {together}"
    taught(several, loss, source, lesson, key, out, told, by)
    after = source.since(lesson.steps) if unseen is None else iter(unseen)
    held = torch.cat([known.seen(batch) for batch, _ in zip(after, range(HELD), strict=False)])
    note = {**about, "tokens": lesson.steps * len(first[0])}
    return [
        one.done(held, note, [o.pupil.writes for o in several[:i]] if together else []) for i, one in enumerate(several)
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
) -> None:
    """Teach dictionaries what lowers `loss(batch, progress)`; with `out`, a run of the same `key` that was killed goes on.

    ValueError: a rule that is not learnt so.
    """
    for m in (one.pupil.sparsifier for one in several):
        if isinstance(m, Codebook | Boosted):
            way = "with its model: learn_codebooks" if isinstance(m, Codebook) else "in parts: learn_boost"
            raise ValueError(f"{m.name} is learnt {way} (fewer.train)")
    parameters = {f"{i}/{name}": t for i, one in enumerate(several) for name, t in one.tensors.items()}
    matrices = [f"{i}/{name}" for i, one in enumerate(several) for name in one.rows]
    optimizer = RowAdam(parameters, matrices, [f"{i}/decoder" for i in range(len(several))])
    widest = max(one.tensors["encoder"].shape[1] for one in several)
    rate = Trapezoid(lesson.rate or RATE / math.sqrt(widest), WARM)
    how = Training(lesson.steps, rate, clip=math.inf, seed=lesson.seed, half=lesson.half, save_after=lesson.save_after)
    kept = Kept(out, f"{key} {replace(lesson, save_after=0.0)}", by) if out else None
    train(parameters, loss, by.read(source), how, kept, None if by.crew.rank else told, optimizer, by)


def apart(several: Sequence[One], known: Known, rows: Float[Tensor, "n dim"], progress: float) -> Tensor:
    """Each for itself; the sum over all."""
    return torch.stack([one.loss(rows, progress) for one in several]).sum()


def summed(several: Sequence[One], known: Known, rows: Float[Tensor, "n dim"], progress: float) -> Tensor:
    """What they write at each site, added up, against what is there: the mean over all columns that somebody writes."""
    left, costs = {name: rows[:, at] for name, at in known.sites.items()}, []
    for one in several:
        said, cost = one.told(rows, progress)
        costs.append(cost)
        widths = [known.sites[name].stop - known.sites[name].start for name in one.pupil.writes]
        for name, part in zip(one.pupil.writes, said.split(widths, 1), strict=True):
            left[name] = left[name] - part
    written = dict.fromkeys(name for one in several for name in one.pupil.writes)
    error = torch.cat([left[name] for name in written], 1)
    dead = [one.of_the_dead(rows, torch.cat([left[name] for name in one.pupil.writes], 1).detach()) for one in several]
    return error.square().mean() + torch.stack([*costs, *dead]).sum()
