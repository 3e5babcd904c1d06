"""The frontier: every method at every budget, measured on one model, beside dense and random."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from fewer.core import Budget, find
from fewer.core import axes as all_axes
from fewer.core import budget as read_budget
from fewer.core import methods as names
from fewer.data import corpus, windows
from fewer.models import locate, open_lazily, sites, tokenizer_of

from . import parallel, results
from .engine import Progress
from .jobs import Job, key, measure
from .point import Point
from .recalling import CHOOSE, Asking, Questions, steps_of
from .steps import Step, at_budgets, kind

BUDGETS = ("50%", "30%", "2:4")
SHARES = ("50%", "25%", "12.5%")


@dataclass(frozen=True)
class Text:
    """What to calibrate and test on: `source` as `data.corpus` reads it, in windows of `length` tokens."""

    source: str = "stdlib"
    calibration: int = 12
    test: int = 12
    length: int = 512
    seed: int = 0

    def windows(self, tokenizer: Any) -> tuple[Int[Tensor, "count length"], Int[Tensor, "tests length"]]:
        """The two, from parts of the source that share no document. `ValueError` if there is too little text."""
        kinds = (("calibration", self.calibration), ("test", self.test))
        calibration, test = (
            windows(corpus(self.source, part), tokenizer, self.length, n, self.seed) for part, n in kinds
        )
        return calibration, test

    def __str__(self) -> str:
        source = "the Python standard library" if self.source == "stdlib" else self.source
        return f"{source}: {self.test} test windows of {self.length} tokens, calibrated on {self.calibration} others"


def frontier(
    model: str | Path = "bundled",
    axes: Sequence[str] = ("weights",),
    budgets: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    where: str = "*",
    data: Text | None = None,
    out: str | Path | None = None,
    jobs: int | None = None,
    ray: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
    found: Callable[[Point], None] | None = None,
    questions: Questions | None = None,
) -> list[Point]:
    """Measure methods x budgets on a model: perplexity and KL to dense against bytes, bits and FLOPs.

    On the axes `attention` and `cache`, which act while a model runs: answers to `questions` against what is read and remembered.

    `methods` are steps without a budget, such as `weights/wanda + eora(rank=16)`; by default every pruner of the axes
    that is quick and then, on the best of those that only choose, every corrector and every allocator. Dense and random are always there.
    Jobs run in `jobs` processes (by default one a core) or on a Ray cluster, and are remembered by content in the cache
    directory (`$FEWER_CACHE`): a second run measures only what is new. `found` is told each point as it comes; `out` is a file of
    JSON lines. A job that fails becomes a point with an `error`. Raises `ValueError` or `LookupError` before any
    work if something given cannot be, and `RuntimeError` if every job failed.
    """
    running = [axis for axis in axes if axis in CHOOSE]
    if running or questions is not None:
        if running and len(running) < len(axes):
            raise ValueError(
                f"{', '.join(running)} are measured by questions, {', '.join(axes)} not together: ask apart"
            )
        first, axis, tight = steps_of(axes, budgets or SHARES, methods, where), axes[0], []
        questions = questions or Questions()
    else:
        first, axis = _asked(axes, methods, budgets, where)
        tight = [b for b in budgets or BUDGETS if _at_most_half(read_budget(b))] if methods is None else []
    bench = Bench.at(model, where, data, jobs, ray, device, progress, found, questions)
    bench.later = len(_additions(axis, "random", tight, where)) if tight else 0
    points = bench.points(first)
    bench.later = 0
    if tight and (best := _best_choice(axis, points)):
        points += bench.points(_additions(axis, best, tight, where))
    if all(p.error for p in points):
        raise RuntimeError(f"every job failed; the first said: {points[0].error}")
    if out is not None:
        _write(Path(out), points)
    return points


@dataclass
class Bench:
    """A model, text, and the processes that measure: steps in, points out, in the order asked for."""

    base: Job | Asking
    shape: nn.Module  # the model without its weights, to refuse what cannot be done to it
    runner: Callable[..., Iterator[tuple[Job | Asking, Point | Exception]]]
    progress: Progress | None = None
    found: Callable[[Point], None] | None = None
    done: int = 0
    total: int = 0
    later: int = 0  # how many more will be asked for

    @classmethod
    def at(
        cls,
        model: str | Path = "bundled",
        where: str = "*",
        data: Text | None = None,
        jobs: int | None = None,
        ray: bool = False,
        device: str = "cpu",
        progress: Progress | None = None,
        found: Callable[[Point], None] | None = None,
        questions: Questions | None = None,
    ) -> "Bench":
        """Set one up, as `frontier` does; reads the text, but no weights yet."""
        place = locate(model)
        shape, tokenizer = open_lazily(place), tokenizer_of(place)
        if tokenizer is None:
            raise ValueError(f"{model} has no tokenizer: the frontier measures language models, on text")
        runner = _runner(jobs, ray)
        text = (data or Text()).windows(tokenizer)
        base: Job | Asking
        if questions is None:
            sites(shape, where)
            base = Job(place, "", where, *text, device)
        else:
            base = Asking(place, "", tuple(questions.tasks(tokenizer)), text[0], questions.every, device)
        return cls(base, shape, runner, progress, found)

    def points(self, steps: Sequence[Step | None]) -> list[Point]:
        """A point for each step; None is the dense model. `ValueError` before any work for what the model cannot take."""
        for s in filter(None, steps):
            self.base.check(self.shape, s)
        todo = [replace(self.base, step=str(s) if s else "") for s in steps]
        self.total += len(todo)
        known: dict[str, Point] = {}
        fresh: list[Job | Asking] = []
        for job in todo:
            if point := results.recall(key(job)):
                known[job.step] = self._take(point)
            else:
                fresh.append(job)
        for job, outcome in self.runner(fresh, measure) if fresh else ():
            if isinstance(outcome, Exception):
                outcome = replace(job.unmeasured(), error=f"{type(outcome).__name__}: {outcome}".replace("\n", " "))
            else:
                results.remember(key(job), outcome)
            known[job.step] = self._take(outcome)
        return [known[job.step] for job in todo]

    def _take(self, point: Point) -> Point:
        self.done += 1
        if self.found:
            self.found(point)
        if self.progress:
            self.progress(point.step, self.done, self.total + self.later)
        return point


def _asked(
    axes: Sequence[str], methods: Sequence[str] | None, budgets: Sequence[str] | None, where: str
) -> tuple[list, str]:
    """Dense (None), random and the methods asked for, at every budget they can be given."""
    for axis in axes:
        if axis not in all_axes():
            raise LookupError(f"no axis {axis!r}; there are: {', '.join(all_axes())}")
        if axis != "weights":
            raise ValueError(
                f"the axis {axis!r} cannot be measured on a model yet; write --axes weights, attention or cache"
            )
    amounts = [str(read_budget(b)) for b in budgets or BUDGETS]
    if methods is None:
        chosen = [n for axis in axes for n in names(axis) if kind(find(n)) == "Pruner" and find(n).quick]
    else:
        chosen = [m if "/" in m.split()[0] else f"{axes[0]}/{m}" for m in methods]
    whole = dict.fromkeys([*(f"{axis}/random" for axis in axes), *chosen])
    return [None, *(s for m in whole for s in at_budgets(m, amounts, where))], axes[0]


def _best_choice(axis: str, points: Sequence[Point]) -> str | None:
    """Of the methods that only choose what stays, the one with the lowest perplexity where least is kept."""
    plain = {n for n in names(axis) if kind(find(n)) == "Pruner" and _only_chooses(n)}
    there = [p for p in points if p.perplexity and p.kept and not p.control and f"{axis}/{p.method}" in plain]
    return min(there, key=lambda p: (p.kept, p.perplexity and p.perplexity.value)).method if there else None


def _at_most_half(amount: Budget) -> bool:
    return (amount.keep / amount.group if amount.group else amount.keep) <= 0.5 or (
        isinstance(amount.keep, int) and not amount.group
    )


def _additions(axis: str, best: str, budgets: Sequence[str], where: str) -> list[Step]:
    """Every corrector and every allocator on top of one method, at the budgets they can be given."""
    joins = {"Corrector": "+", "Allocator": "by"}
    adds = [
        (joins[kind(find(n))], n.partition("/")[2]) for n in names(axis) if kind(find(n)) in joins and find(n).quick
    ]
    steps: list[Step] = []
    for sign, name in sorted(adds):
        try:
            steps += at_budgets(f"{axis}/{best} {sign} {name}", budgets, where)
        except ValueError:  # an allocator, and no budget to divide
            continue
    return steps


def _only_chooses(name: str) -> bool:
    """True for a pruner that ranks and leaves survivors as they were: its `prune` is the axis' own."""
    prune = getattr(find(name), "prune", None)
    return prune is not None and prune.__module__.endswith("._protocol")


def _runner(jobs: int | None, ray: bool) -> Callable[..., Iterator[tuple[Job | Asking, Point | Exception]]]:
    if ray:
        return parallel.cluster
    count = cores() if jobs is None else jobs
    if count < 1:
        raise ValueError(f"{count} jobs at a time: write at least 1")
    return parallel.alone if count == 1 else lambda todo, work: parallel.processes(todo, work, count)


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(path: Path, points: Sequence[Point]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text("".join(json.dumps(p.as_dict()) + "\n" for p in points), encoding="utf-8")
    part.replace(path)


__all__ = ["BUDGETS", "SHARES", "Bench", "Text", "cores", "frontier"]
