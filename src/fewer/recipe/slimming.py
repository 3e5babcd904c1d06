"""Steps that make groups of coupled maps narrower: what they act on, what they hear, who divides their budget."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fewer.core import Budget, Change, Group, Site
from fewer.models.groups import groups

from .look import seeing
from .steps import Step, kind
from .walk import Walk


def slims(step: Step) -> bool:
    """Whether a step removes units of coupled maps, not entries of one."""
    return kind(type(step.method)) == "Slimmer"


def found(model: nn.Module, step: Step) -> tuple[Group, ...]:
    """The groups a step acts on; ValueError for a count that a group does not have."""
    amount = step.budget
    here = tuple(groups(model, step.where))
    method: Any = step.method
    for group in here:
        if group.reader.role not in method.readers:
            raise ValueError(f"{method.name} knows nothing of {group.name}; write '@ mlp' after its budget")
    for group in here if isinstance(amount.keep, int) and not amount.joint else ():
        if amount.keep > group.units:
            raise ValueError(
                f"budget '{amount}': {group.name} has only {group.units} units; write {group.units} or less"
            )
    return here


def asked(step: Step, group: Group) -> list[tuple[Site, tuple[type, ...]]]:
    """What is to be seen where: statistics of the input at the reader alone, of the map itself at every map."""
    kinds = (*step.method.needs, *(k for c in step.correctors for k in c.needs))
    of_map = tuple(dict.fromkeys(k for k in kinds if not k.of_input))
    return [*((s, of_map) for s in group.writers), (group.reader, tuple(dict.fromkeys(kinds)))]


def within(walk: Walk, number: int, here: Sequence[Group]) -> list[Group]:
    """Those of the groups that lie in this block."""
    return [g for g in here if walk.within(number, [g.reader])]


def check_apart(tasks: Sequence[tuple[set[str], bool, Step]]) -> None:
    """Nothing else may act on maps that become narrower: what is left of them is known only afterwards."""
    for i, (names, narrower, step) in enumerate(tasks):
        for others, _, other in tasks[:i] + tasks[i + 1 :]:
            if narrower and (both := names & others):
                raise ValueError(
                    f"'{step}' makes {min(both)} narrower, and '{other}' acts on it too: do one, save it, and do the other "
                    "to the result"
                )


def act(
    step: Step, here: Sequence[Group], budgets: Sequence[Budget], stats: dict[str, Any], dtype: torch.dtype | None
) -> Iterator[tuple[Change, Any]]:
    """Do a step to the groups of one block."""
    axis = importlib.import_module(f"fewer.{step.axis}._slim") if here else None
    for group, amount in zip(here, budgets, strict=True):
        seen = {s.name: stats.pop(s.name) for s in group.sites}
        change, stored = axis.act(step.method, step.correctors, group, amount, seen, dtype)  # type: ignore[union-attr]
        yield replace(change, step=step.what, budget=str(step.budget)), stored


def divide(
    walk: Walk,
    step: Step,
    here: Sequence[Group],
    signal: Callable[..., Tensor],
    jointly: Callable[[Sequence[Tensor], Budget], list[Budget]],
) -> list[Budget]:
    """One budget a group: the allocator's after `by`, one ranking for `per model`, else the slimmer's own rule."""
    method: Any = step.allocator or step.method
    axis = importlib.import_module(f"fewer.{step.axis}")
    if step.budget.scope == "model" and not step.allocator:
        wanted = {g.name: asked(step, g) for g in here}

        def score(number: int, g: Group, stats: dict[str, Any]) -> Tensor:
            parts = [axis.Part(s.role, s.read().float(), stats[s.name]) for s in g.sites]
            return method.score(axis.Coupled(g.units, tuple(parts[:-1]), parts[-1]))

        scores = _look(walk, here, wanted, score)
        return jointly([scores[g.name] for g in here], step.budget)
    if step.allocator:

        def remember(number: int, g: Group, stats: dict[str, Any]) -> Tensor:
            return signal(number, step, g.reader, stats[g.reader.name])

        signals = _look(walk, here, {g.name: [(g.reader, method.needs)] for g in here}, remember)
    else:
        signals = _turns(walk, here) if method.looks else {}
    shares = [axis.Share(g.name, (1, g.units), g.layer, signals.get(g.name)) for g in here]
    return method.allocate(step.budget, shares)


def _look(
    walk: Walk,
    here: Sequence[Group],
    wanted: Mapping[str, list[tuple[Site, tuple[type, ...]]]],
    tell: Callable[[int, Group, dict[str, Any]], Tensor],
) -> dict[str, Tensor]:
    """One look at the dense model, block by block: what is to be told of each group."""
    out: dict[str, Tensor] = {}
    see = seeing(walk, [pair for pairs in wanted.values() for pair in pairs])
    for number, _ in enumerate(walk.blocks):
        with walk.on(number), walk.near(number):
            local = within(walk, number, here)
            stats = see(number, [pair for g in local for pair in wanted[g.name]])
            out |= {g.name: tell(number, g, stats).cpu() for g in local}
            walk.advance(number)
    walk.rewind()
    return out


def _turns(walk: Walk, here: Sequence[Group]) -> dict[str, Tensor]:
    """How far the block of each group turns the hidden state: the mean angle over all tokens, in half turns."""
    out: dict[str, Tensor] = {}
    for number, _ in enumerate(walk.blocks):
        with walk.on(number), walk.near(number):
            if local := within(walk, number, here):
                mean = torch.cat([_angle(x, y) for x, y in walk.through(number)]).mean().float().cpu()
                out |= {g.name: mean for g in local}
            walk.advance(number)
    walk.rewind()
    return out


def _angle(x: Tensor, y: Tensor) -> Tensor:
    cosine = nn.functional.cosine_similarity(x.double().flatten(0, -2), y.double().flatten(0, -2), dim=-1)
    return cosine.clamp(-1, 1).acos() / torch.pi


def kept(stored: Mapping[str, Any]) -> dict[str, Tensor]:
    """Which units stay, of what was stored of groups."""
    return {name: s.keep for name, s in stored.items() if isinstance(getattr(s, "keep", None), Tensor)}
