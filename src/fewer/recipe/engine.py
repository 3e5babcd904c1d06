"""Block by block: one block and its statistics at a time, and what a pruned block says is what the next one hears."""

import contextlib
import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewer.calibrate import Stats, watching
from fewer.core import Budget, Change, Site
from fewer.models import SparseLinear, sites
from fewer.select import joint_counts

from .steps import Recipe, Step
from .walk import Walk

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Task:
    """A step at the sites it matched, in the order of the model."""

    step: Step
    sites: tuple[Site, ...]


@dataclass
class Plan:
    """What will be done where: checked before any work starts."""

    tasks: tuple[Task, ...]
    budgets: dict[tuple[int, str], Budget] = field(default_factory=dict)  # (task, site) where a budget was divided

    def at(self, task: int, site: Site) -> Budget:
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
        found = tuple(sites(model, step.where))
        for site in found:
            _check(site, step.budget)
        if step.budget.joint and not hasattr(step.method, "score"):
            raise ValueError(f"{step.method.name} gives no score, so '{step.budget}' cannot rank several maps by it")
        tasks.append(Task(step, found))
    return Plan(tuple(tasks))


def _check(site: Site, amount: Budget) -> None:
    """What can be known of a site before any work. Weights that are still on disk are looked at when they are read."""
    if isinstance(site.module, SparseLinear):
        raise ValueError(f"{site.name} is packed already; start from the dense model, or save it with format='dense'")
    try:
        amount.check(*site.shape)
    except ValueError as wrong:
        raise ValueError(f"{site.name}: {wrong}") from None
    if not site.tensor.is_meta and not site.read().isfinite().all():
        raise ValueError(f"{site.name}: NaN or infinite weights; is the checkpoint whole?")


def needs(step: Step) -> tuple[type, ...]:
    """The statistics that a step asks for, each once."""
    asked = itertools.chain(step.method.needs, *(c.needs for c in step.correctors))
    return tuple(dict.fromkeys(asked))


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


def run(
    walk: Walk,
    plan: Plan,
    done: Callable[[str, list[tuple[Change, Any]]], None],
    progress: Progress | None = None,
    skip: Callable[[str], bool] = lambda block: False,
) -> None:
    """Do the plan. `done(block, [(change, stored), ...])` is called after each block; `skip` says which are done already."""
    order = waves(plan)
    last = _last_hearing(walk, plan)
    for number, block in enumerate(walk.blocks):
        if progress:
            progress(f"block {block}" if block else "model", number, len(walk.blocks))
        with walk.on(number):
            if not skip(block):
                results = [r for wave in order for r in _wave(walk, number, plan, wave)]
                done(block, results)
            if number < last:
                walk.advance(number)
    if progress:
        progress("done", len(walk.blocks), len(walk.blocks))


def _last_hearing(walk: Walk, plan: Plan) -> int:
    """The last block whose statistics anybody needs: after it nothing must be fed on."""
    hearing = [n for n, _ in enumerate(walk.blocks) for t in plan.tasks if needs(t.step) and walk.within(n, t.sites)]
    return max(hearing, default=-1)


def _wave(walk: Walk, number: int, plan: Plan, wave: Sequence[int]) -> Iterator[tuple[Change, Any]]:
    here = {i: walk.within(number, plan.tasks[i].sites) for i in wave}
    wanted = {s.name: (s, needs(plan.tasks[i].step)) for i in wave for s in here[i]}
    stats = observe(walk, number, list(wanted.values()))
    for i in wave:
        step, act = plan.tasks[i].step, _act(plan.tasks[i].step)
        budgets = _within_layer(step, here[i], stats) or {s.name: plan.at(i, s) for s in here[i]}
        for site in here[i]:
            change, stored = act(step.method, step.correctors, site, budgets[site.name], stats[site.name], walk.dtype)
            yield replace(change, step=step.what, budget=str(step.budget)), stored
            del stats[site.name]


def observe(walk: Walk, number: int, wanted: Sequence[tuple[Site, tuple[type, ...]]]) -> dict[str, Stats]:
    """Run a block on all data once and collect what is asked for at each site; nothing is run if nothing is asked."""
    with contextlib.ExitStack() as stack:
        seen: dict[str, Stats] = {}
        for kinds in dict.fromkeys(k for _, k in wanted):
            seen |= stack.enter_context(watching([s for s, k in wanted if k == kinds], kinds))
        if any(kinds for _, kinds in wanted):
            walk.listen(number)
    return seen


def _within_layer(step: Step, here: Sequence[Site], stats: dict[str, Stats]) -> dict[str, Budget]:
    """`per layer`: the maps of one block share one ranking."""
    if step.budget.scope != "layer" or not here:
        return {}
    scores = [step.method.score(s.read().float(), stats[s.name]) for s in here]  # type: ignore[attr-defined]
    return dict(zip([s.name for s in here], _jointly(scores, step.budget), strict=True))


def _jointly(scores: Sequence[Tensor], shared: Budget) -> list[Budget]:
    """What each map keeps if all are ranked together; a map that would keep nothing keeps one, the largest pays."""
    counts = joint_counts(scores, shared)
    counts[counts.index(max(counts))] -= counts.count(0)
    return [shared.with_count(max(1, n)) for n in counts]


def divide(walk: Walk, plan: Plan, progress: Progress | None = None) -> None:
    """One look at the dense model, for budgets that are divided over all of it: an allocator's, or `per model`."""
    divided = plan.divided()
    signals: dict[tuple[int, str], Tensor] = {}
    for number, block in enumerate(walk.blocks if divided else ()):
        if progress:
            progress(f"looking at {block}", number, len(walk.blocks))
        with walk.on(number):
            for i in divided:
                step = plan.tasks[i].step
                here = walk.within(number, plan.tasks[i].sites)
                kinds = step.allocator.needs if step.allocator else step.method.needs
                stats = observe(walk, number, [(s, kinds) for s in here])
                ask = step.allocator.signal if step.allocator else step.method.score  # type: ignore[attr-defined]
                signals |= {(i, s.name): ask(s.read().float(), stats[s.name]).cpu() for s in here}
            walk.advance(number)
    for i in divided:
        plan.budgets |= {(i, name): b for name, b in _divide(plan.tasks[i], i, signals).items()}
    walk.rewind()


def _divide(task: Task, i: int, signals: dict[tuple[int, str], Tensor]) -> dict[str, Budget]:
    step, names = task.step, [s.name for s in task.sites]
    if step.allocator is None:
        return dict(zip(names, _jointly([signals[i, n] for n in names], step.budget), strict=True))
    share = importlib.import_module(f"fewer.{step.axis}").Share
    shares = [share(s.name, s.shape, s.layer, signals[i, s.name]) for s in task.sites]
    return dict(zip(names, step.allocator.allocate(step.budget, shares), strict=True))  # type: ignore[attr-defined]


def _act(step: Step) -> Callable[..., tuple[Change, Any]]:
    return importlib.import_module(f"fewer.{step.axis}._act").act


@contextlib.contextmanager
def undoing(found: Sequence[Site]) -> Iterator[None]:
    """Put every touched parameter back, bit for bit, whatever happens."""
    touched = {(id(s.module), s.param): s.tensor for s in found}
    before = {key: t.detach().clone() for key, t in touched.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for key, t in touched.items():
                t.copy_(before[key])
