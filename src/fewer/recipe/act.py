"""Do a recipe to a model: for a while (`apply`, undone exactly), or for good (`sparsify`)."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewer.calibrate import Crew
from fewer.core import Change
from fewer.models import stored_dtype
from fewer.models.loss import Loss

from .attending import AXES, Attending, attending_to
from .cutting import learn
from .engine import Progress, divide, run, undoing
from .gates import places_of
from .gating import Gating, gating
from .meter import Meter, Metered
from .own import shown
from .planning import Plan, hears, plan
from .recorded import recorded
from .solving import solved
from .steps import Recipe, recipe
from .walk import Device, Hold, Walk, already_there


@dataclass
class Applied:
    """What a recipe did: the model, a line per site, and the survivors as they are stored."""

    model: nn.Module | None
    steps: Recipe
    changes: list[Change] = field(default_factory=list)
    stored: dict[str, Any] = field(default_factory=dict)  # by site name
    out: Path | None = None
    attending: Attending | Metered | None = (
        None  # what the model's attention does meanwhile; its `changes` come with those at the end
    )
    gating: Gating | None = None  # which inputs its maps multiply meanwhile; its `changes` come with those at the end
    notes: tuple[str, ...] = ()  # what was found for each target

    def done(self, block: str, results: list[tuple[Change, Any]]) -> None:
        """Take in the results of one block."""
        self.changes += [change for change, _ in results]
        self.stored |= {change.site: stored for change, stored in results}


@contextlib.contextmanager
def apply(
    model: nn.Module,
    steps: Any,
    data: Tensor | None = None,
    progress: Progress | None = None,
    device: Device = None,
    loss: Loss | None = None,
    every: int = 64,
    record: bool = False,
    compiled: bool = False,
    meter: Meter | None = None,
) -> Iterator[Applied]:
    """Do the steps; on leaving, every weight is what it was, bit for bit, and attention is the model's own.

    Steps of `attention` and `cache` act while the model runs, `generate` included: what is read, and what is remembered; a cache that
    was begun inside is read inside. Tokens are forgotten after each chunk of several, and, one by one, each `every` tokens.
    With `record`, on a GPU, steps of one token become a CUDA graph, whose answer lasts until the next step; with `compiled`
    what is around attention in them is compiled by torch first, which takes a minute.
    Steps of `activations` act while the model runs as well: each token multiplies the inputs that a gate keeps. What gates learn
    (thresholds, statistics, budgets for each map) they learn from `data`, of the model as the steps of `weights` left it.
    A `meter` watches what that loses; `applied.attending.readings()` tells.

    A pattern that learns of a layer, such as `attention/pca_keys`, learns from `data`, or else from the first text that it reads.

    A budget of these may be a target, such as '200MB', '95% of mass' or '2ms': `applied.steps` are what was found for it, `applied.notes`
    say so.

    `steps` is whatever `recipe` reads; `data` is `[windows, length]` token ids (or rows of samples) for methods that ask
    for statistics. What is measured inside is what would be stored: weights are rounded to the checkpoint's dtype. Blocks
    are brought to `device` one at a time, and back. `loss(answer, data)`, a mean over windows, is what gradients are
    taken of; a language model has its own.

    >>> with apply(model, "weights/wanda 50% @ mlp", data) as applied:  # doctest: +SKIP
    ...     print(applied.changes[0].kept)
    0.5
    """
    asked = recipe(steps)
    if record and not any(s.axis in AXES for s in asked):
        raise ValueError("record=True records steps of attention or cache, and there are none")
    if record and meter is not None:
        raise ValueError("a meter cannot look into recorded steps: leave out record=True or the meter")
    found = solved(model, asked, data)
    read = found.steps
    running = tuple(s for s in read if s.axis in AXES)
    gates = places_of(model, tuple(s for s in read if s.axis == "activations"))
    todo = plan(model, tuple(s for s in read if s.axis not in (*AXES, "activations")))
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(attending_to(model, running, every, meter)) if running else None
        if record:
            stack.enter_context(recorded(model, engine, compiled))
        applied = Applied(model, read, attending=engine, notes=found.notes)
        if todo.tasks:
            stack.enter_context(undoing([s for t in todo.tasks for s in t.sites]))
            applied = replace(
                keep(model, todo, data, progress, device, loss), steps=read, attending=engine, notes=found.notes
            )
        if gates:
            applied.gating = stack.enter_context(gating(model, gates))
            learn(model, applied.gating, data, progress, device)
        learning = engine and engine.bare.own.learns(engine.bare.ways.values())  # what is kept in files is read here
        if learning and data is not None:
            shown(model, data)
        yield applied
        for acting in (applied.gating, engine):
            applied.changes += acting.changes() if acting else []


def keep(
    model: nn.Module,
    todo: Plan,
    data: Tensor | None,
    progress: Progress | None = None,
    device: Device = None,
    loss: Loss | None = None,
) -> Applied:
    """Do a plan in place, for good."""
    applied = Applied(model, tuple(t.step for t in todo.tasks))
    with walk_for(model, todo, data, device=device, loss=loss) as walk:
        divide(walk, todo, progress)
        run(walk, todo, applied.done, progress)
    return applied


def walk_for(
    model: nn.Module,
    todo: Plan,
    data: Tensor | None,
    hold: Hold = already_there,
    device: Device = None,
    loss: Loss | None = None,
) -> Walk:
    """The way through a model for a plan: what lies outside the blocks is a stop only if the plan acts there.

    `ValueError`, before any work: data that is missing, or a loss that nobody can guess.
    """
    walk = Walk(model, data, stored_dtype(model), hold, device=device, loss=loss, crew=Crew.here())
    if any(hears(t.step) for t in todo.tasks):
        walk.need_data()
    return walk.with_rest([s for t in todo.tasks for s in t.sites])
