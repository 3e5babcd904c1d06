"""What will be done where: sites matched, budgets checked, and all that can be refused refused, before any work."""

import importlib
import itertools
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from fewer.core import Budget, Group, Site
from fewer.models import SparseLinear, sites

from . import slimming
from .steps import Recipe, Step


@dataclass(frozen=True)
class Task:
    """A step at the sites it matched, in the order of the model."""

    step: Step
    sites: tuple[Site, ...]
    groups: tuple[Group, ...] = ()  # of a step that makes maps narrower: the sites are theirs


@dataclass
class Plan:
    """What will be done where: checked before any work starts."""

    tasks: tuple[Task, ...]
    budgets: dict[tuple[int, str], Budget] = field(default_factory=dict)  # (task, site) where a budget was divided

    def at(self, task: int, site: Site | Group) -> Budget:
        return self.budgets.get((task, site.name), self.tasks[task].step.budget)

    def divided(self) -> list[int]:
        """The tasks whose budget depends on the whole model."""
        return [i for i, t in enumerate(self.tasks) if t.step.allocator or t.step.budget.scope == "model"]


def plan(model: nn.Module, steps: Recipe) -> Plan:
    """Match sites and check budgets; a `ValueError` names the pattern, the site, and what would be right."""
    tasks = []
    for step in steps:
        if step.axis != "weights":
            raise ValueError(f"{step.method.name}: only the axis 'weights' acts on a stored model so far")
        groups = slimming.found(model, step) if slimming.slims(step) else ()
        found = tuple(s for g in groups for s in g.sites) or tuple(sites(model, step.where))
        for site in found:
            _check(site, None if groups else step.budget)
            for corrector in step.correctors:
                _suits(corrector, site)
            if hasattr(step.method, "at"):
                step.method.at(site, step.budget)  # refuses what was not learnt
        if step.budget.joint and not hasattr(step.method, "score"):
            raise ValueError(f"{step.method.name} gives no score, so '{step.budget}' cannot rank several maps by it")
        tasks.append(Task(step, found, groups))
    slimming.check_apart([({s.name for s in t.sites}, bool(t.groups), t.step) for t in tasks])
    return Plan(tuple(tasks))


def _check(site: Site, amount: Budget | None) -> None:
    """What can be known of a site before any work. Weights that are still on disk are looked at when they are read."""
    if isinstance(site.module, SparseLinear):
        raise ValueError(f"{site.name} is packed already; start from the dense model, or save it with format='dense'")
    try:
        if amount:
            amount.check(*site.shape)
    except ValueError as wrong:
        raise ValueError(f"{site.name}: {wrong}") from None
    if not site.tensor.is_meta and not site.read().isfinite().all():
        raise ValueError(f"{site.name}: NaN or infinite weights; is the checkpoint whole?")


def _suits(corrector: Any, site: Site) -> None:
    """What a corrector puts beside the survivors must have a place in the module."""
    if corrector.gives_bias and not site.takes_bias:
        raise ValueError(
            f"{site.name}: {corrector.name} needs a bias, which its module cannot take; leave it out there"
        )
    if corrector.needs_whole and (site.part is not None or site.index is not None):
        raise ValueError(
            f"{site.name} is one of several maps in one module, and {corrector.name} needs a module to itself: give "
            "these maps a step without it, and leave them out here with '@ !PATTERN'"
        )


def needs(step: Step) -> tuple[type, ...]:
    """The statistics that a step asks for, each once."""
    asked = itertools.chain(step.method.needs, *(c.needs for c in step.correctors))
    return tuple(dict.fromkeys(asked))


def hears(step: Step) -> bool:
    """Whether a step needs calibration data: for statistics, or to sense the loss."""
    sensing = step.allocator is not None and type(step.allocator).sense is not protocol(step).Allocator.sense  # type: ignore[attr-defined]
    return sensing or bool(needs(step) or (step.allocator and step.allocator.needs))


def protocol(step: Step) -> Any:
    return importlib.import_module(f"fewer.{step.axis}")


def waves(plan: Plan) -> list[list[int]]:
    """Tasks that touch no common site share one look at the data; a task that follows on another's site waits."""
    out: list[list[int]] = []
    taken: set[str] = set()
    for i, task in enumerate(plan.tasks):
        names = {s.name for s in task.sites}
        if not out or names & taken:
            out.append([])
            taken = set()
        out[-1].append(i)
        taken |= names
    return out
