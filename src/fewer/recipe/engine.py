"""Block by block: one block and its statistics at a time, and what a pruned block says is what the next one hears."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewer.calibrate import ALONE, Stat, Stats
from fewer.core import Budget, Change, Site
from fewer.select import joint_counts

from . import slimming
from .blame import Blame, of_gradients
from .look import Progress, look_back, observe, of_inputs
from .planning import Plan, Task, needs, protocol, waves
from .steps import Step
from .walk import Walk


def run(
    walk: Walk,
    plan: Plan,
    done: Callable[[str, list[tuple[Change, Any]]], None],
    progress: Progress | None = None,
    skip: Callable[[str], bool] = lambda block: False,
) -> None:
    """Do the plan. `done(block, [(change, stored), ...])` is called after each block; `skip` says which are done already.

    Gradients are those of the dense model: they are looked for before anything is pruned.
    """
    order = waves(plan)
    last = _last_hearing(walk, plan)
    blame = look_back(walk, [(s, needs(t.step)) for t in plan.tasks for s in t.sites], progress)
    for number, block in enumerate(walk.blocks):
        if progress:
            progress(f"block {block}" if block else "model", number, len(walk.blocks))
        with walk.on(number):
            if not skip(block):
                with walk.near(number):
                    felt = _felt(walk, number, plan, blame)
                    results = [r for wave in order for r in _wave(walk, number, plan, wave, felt)]
                done(block, results)
            if number < last:
                walk.advance(number)
        if blame:
            blame.forget(number)
    if progress:
        progress("done", len(walk.blocks), len(walk.blocks))


def _felt(walk: Walk, number: int, plan: Plan, blame: Blame | None) -> dict[tuple[int, str], Stats]:
    """The statistics of gradients at a block, by task and site, while the block is dense still."""
    found: dict[tuple[int, str], Stats] = {}
    for i, task in enumerate(plan.tasks if blame else ()):
        wanted = [(s, needs(task.step)) for s in walk.within(number, task.sites) if of_gradients(needs(task.step))]
        if blame and wanted:
            found |= {(i, name): stats for name, stats in blame.at(number, wanted).items()}
    return found


def _last_hearing(walk: Walk, plan: Plan) -> int:
    """The last block whose inputs anybody needs: after it nothing must be fed on."""
    hearing = [
        n for t in plan.tasks if of_inputs(needs(t.step)) for n in {walk.number(s) for s in t.sites}
    ]  # fmt: skip
    return max(hearing, default=-1)


def _wave(
    walk: Walk, number: int, plan: Plan, wave: Sequence[int], felt: dict[tuple[int, str], Stats]
) -> Iterator[tuple[Change, Any]]:
    here = {i: walk.within(number, plan.tasks[i].sites) for i in wave}
    wanted = {s.name: (s, of_inputs(needs(plan.tasks[i].step))) for i in wave for s in here[i]}
    groups = {i: slimming.within(walk, number, plan.tasks[i].groups) for i in wave}
    asked = [pair for i in wave for g in groups[i] for pair in slimming.asked(plan.tasks[i].step, g)]
    wanted |= {s.name: (s, of_inputs(kinds)) for s, kinds in asked}
    stats = observe(walk, number, list(wanted.values()))
    for i in wave:
        for s in here[i]:
            stats[s.name] |= felt.pop((i, s.name), Stats())
        if plan.tasks[i].groups:
            yield from slimming.act(
                plan.tasks[i].step, groups[i], [plan.at(i, g) for g in groups[i]], stats, walk.dtype
            )
            continue
        step, act = plan.tasks[i].step, _act(plan.tasks[i].step)
        budgets = _within_layer(step, here[i], stats) or {s.name: plan.at(i, s) for s in here[i]}

        def do(site: Site, step: Step = step, act: Any = act, budgets: dict[str, Budget] = budgets) -> Any:
            known = stats.pop(site.name)
            change, stored = act(step.method, step.correctors, site, budgets[site.name], known, walk.dtype)
            return replace(change, step=step.what, budget=str(step.budget)), stored.to("cpu"), site.read()

        alike = any(c.gives_bias for c in step.correctors)  # type: ignore[attr-defined]  # a bias is written where it is found: all do all
        crew = ALONE if alike else walk.crew
        for site, (change, stored, w) in zip(here[i], crew.share(here[i], _work, do), strict=True):
            if crew.size > 1:
                site.write(w)
            yield change, stored


def _work(site: Site) -> float:
    """About how long a site takes: a factorisation of its inputs' moments, and as much again for each row."""
    rows, cols = site.shape
    return float(cols) ** 3 + rows * float(cols) ** 2


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
    divided = [i for i in plan.divided() if not plan.tasks[i].groups]
    signals: dict[tuple[int, str], Tensor] = {}
    kinds = {i: _asked_first(plan.tasks[i].step) for i in divided}
    blame = look_back(walk, [(s, kinds[i]) for i in divided for s in plan.tasks[i].sites], progress)
    for number, block in enumerate(walk.blocks if divided else ()):
        if progress:
            progress(f"looking at {block}", number, len(walk.blocks))
        with walk.on(number), walk.near(number):
            for i in divided:
                here = walk.within(number, plan.tasks[i].sites)
                stats = observe(walk, number, [(s, of_inputs(kinds[i])) for s in here])
                if blame and of_gradients(kinds[i]) and here:
                    for name, felt in blame.at(number, [(s, kinds[i]) for s in here]).items():
                        stats[name] |= felt
                ask = partial(_signal, walk, number, plan.tasks[i].step)
                signals |= {(i, s.name): ask(s, stats[s.name]).cpu() for s in here}
            walk.advance(number)
    for i in divided:
        plan.budgets |= {(i, name): b for name, b in _divide(plan.tasks[i], i, signals).items()}
    walk.rewind()
    for i, task in enumerate(plan.tasks):
        if task.groups:
            amounts = slimming.divide(walk, task.step, task.groups, partial(_signal, walk), _jointly)
            plan.budgets |= {(i, g.name): b for g, b in zip(task.groups, amounts, strict=True)}
    plan.budgets = walk.crew.first(lambda: plan.budgets)


def _asked_first(step: Step) -> tuple[type[Stat], ...]:
    return step.allocator.needs if step.allocator else step.method.needs


def _signal(walk: Walk, number: int, step: Step, site: Site, stats: Stats) -> Tensor:
    """What is remembered of a site; who senses may put another map in its place and ask for the loss."""
    w = site.read().float()
    if step.allocator is None:
        return step.method.score(w, stats)  # type: ignore[attr-defined]

    def loss(tried: Tensor) -> float:
        before = site.read().clone()
        try:
            site.write(tried)
            return walk.loss(number)
        finally:
            site.write(before)

    return step.allocator.sense(w, stats, loss)  # type: ignore[attr-defined]


def _divide(task: Task, i: int, signals: dict[tuple[int, str], Tensor]) -> dict[str, Budget]:
    step, names = task.step, [s.name for s in task.sites]
    if step.allocator is None:
        return dict(zip(names, _jointly([signals[i, n] for n in names], step.budget), strict=True))
    share = protocol(step).Share
    shares = [share(s.name, s.shape, s.layer, signals[i, s.name]) for s in task.sites]
    return dict(zip(names, step.allocator.allocate(step.budget, shares), strict=True))  # type: ignore[attr-defined]


def _act(step: Step) -> Callable[..., tuple[Change, Any]]:
    return importlib.import_module(f"fewer.{step.axis}._act").act


@contextlib.contextmanager
def undoing(found: Sequence[Site]) -> Iterator[None]:
    """Put every touched parameter back, bit for bit, whatever happens; a bias that is new goes."""
    touched = {(id(s.module), s.param): s.tensor for s in found}
    before = {key: t.detach().clone() for key, t in touched.items()}
    biases = {(id(s.module), s.bias_name): (s, s.bias) for s in found if s.takes_bias}
    copies = {key: None if bias is None else bias.detach().clone() for key, (_, bias) in biases.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for key, t in touched.items():
                t.copy_(before[key])
            for key, (site, bias) in biases.items():
                if bias is None:
                    site.module.register_parameter(site.bias_name, None)
                else:
                    bias.copy_(copies[key])
