"""What a model still finds in a long text when it reads less of it, or remembers less: steps side by side, dense and random among them."""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from fewer.core import Budget, find, methods
from fewer.data import Task, benchmark, tasks
from fewer.data.windows import encode
from fewer.measure import Estimate
from fewer.measure.answers import answers
from fewer.measure.estimate import share
from fewer.models import tokenizer_of

from .act import apply
from .jobs import Measurable, opened
from .point import Point
from .solving import solved
from .steps import Recipe, Step, at_budgets, kind, recipe
from .steps import step as read
from .ways import ways_of

CHOOSE = {"attention": "Pattern", "cache": "Evictor"}


@dataclass(frozen=True)
class Recalled:
    """Steps, measured: the share of questions answered to the letter, in each turn too.

    `read` is the share of tokens that a word reads while decoding or before, as budgeted; `kept` that which is remembered at the end,
    `bytes` what that takes as a share of dense, places and tables included; 1 where nothing is left out. `seconds` are for all of it.
    """

    step: str
    accuracy: Estimate
    turns: tuple[float, ...]
    read: float
    kept: float
    bytes: float
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions:
    """What is asked: so many texts of so many tokens, each several times; while decoding, tokens are forgotten after each `every`."""

    tokens: int = 1024
    count: int = 12
    turns: int = 3
    every: int = 64
    seed: int = 0
    file: str = ""  # of a benchmark, whose first `count` rows are asked instead

    def tasks(self, tokenizer: Any) -> list[Task]:
        if self.file:
            return benchmark(self.file, self.count)
        return questions(tokenizer, self.tokens, self.count, self.turns, self.seed)

    def __str__(self) -> str:
        if self.file:
            return f"the first {self.count} rows of {self.file}"
        return f"facts hidden in code: {self.count} texts of {self.tokens} tokens, {self.turns} questions about each, in one cache"


def questions(tokenizer: Any, tokens: int = 1024, count: int = 12, turns: int = 3, seed: int = 0) -> list[Task]:
    """Needles and a table in unrelated code, asked for one after the other: which, the text does not say before its end."""
    notes = tasks.needle(tokenizer, tokens, notes=8, questions=turns, count=(count + 1) // 2, seed=seed)
    return notes + tasks.table(tokenizer, tokens, rows=16, questions=turns, count=count // 2, seed=seed)


def steps_of(
    axes: Sequence[str], budgets: Sequence[str], given: Sequence[str] | None = None, where: str = "*"
) -> list[Step | None]:
    """Dense (None), random and the methods of the axes, or those given, at each budget. `LookupError` for what there is not.

    A short name is looked for on each of the axes; a long one must be of one of them.
    """
    names = [f"{axis}/random" for axis in axes]
    for axis in axes:
        if axis not in CHOOSE:
            raise LookupError(f"axis {axis!r} is not one that reads or remembers; there are: {', '.join(CHOOSE)}")
        if given is None:
            names += [n for n in methods(axis) if kind(find(n)) == CHOOSE[axis] and find(n).quick]
    for m in given or ():
        axis, long, _ = m.partition("/")
        if long and "(" not in axis and axis not in axes:
            raise ValueError(
                f"{m!r} is of the axis {axis}, which is not measured here; write --axes {','.join([*axes, axis])}"
            )
        bare = m.split()[0].partition("(")[0]
        mine = [m] if long and "(" not in axis else [f"{a}/{m}" for a in axes if f"{a}/{bare}" in methods(a)]
        if not mine:
            find(f"{axes[0]}/{bare}")  # says what is close
        names += mine
    return [None, *(s for name in dict.fromkeys(names) for s in at_budgets(name, budgets, where))]


def recall(
    model: nn.Module,
    tokenizer: Any,
    steps: Iterable[str | Step | None],
    asked: Sequence[Task],
    every: int = 64,
    data: Int[Tensor, "windows length"] | None = None,
) -> Iterator[Recalled]:
    """Ask the questions under each step (None or '' is dense). All steps are checked before the first is measured.

    Budgets such as '95% of mass' are found on `data`.
    """
    todo = [solved(model, recipe(s), data) if s else None for s in steps]
    for mine in filter(None, todo):
        ways_of(model, mine.steps)
    for mine in todo:
        begin = time.perf_counter()
        with apply(model, mine.steps, data, every=every) if mine else contextlib.nullcontext() as applied:
            right = answers(model, tokenizer, asked, batch=1)
        changes = applied.changes if applied else []
        before, after = sum(c.bytes_before for c in changes), sum(c.bytes_after for c in changes)
        kept = sum(c.kept for c in changes) / len(changes) if changes else 1.0
        turns = tuple(sum(some) / len(some) for some in _by_turn(right))
        estimate = share(sum(map(sum, right)), sum(map(len, right)))
        stored, told = after / before if before else 1.0, "\n".join(map(str, mine.steps)) if mine else "dense"
        length = sum(len(encode(tokenizer, "".join(t.prompt + t.answer for t in a.turns))) for a in asked) / len(asked)
        budgeted = _read(mine.steps, length) if mine else 1.0
        notes, took = mine.notes if mine else (), time.perf_counter() - begin
        yield Recalled(told, estimate, turns, budgeted, kept, stored, took, notes)


def _by_turn(right: Sequence[Sequence[bool]]) -> list[list[bool]]:
    """Of each turn, the answers of all texts that have so many."""
    return [[r[t] for r in right if t < len(r)] for t in range(max(map(len, right)))]


def _read(steps: Recipe, tokens: float) -> float:
    """The share of what is remembered that patterns may read of texts of so many tokens; a mean over steps."""
    budgets = [s.budget for s in steps if s.axis == "attention" and isinstance(s.budget, Budget)]
    shares = [min(1.0, b.keep / tokens) if isinstance(b.keep, int) else float(b.keep) for b in budgets]
    return sum(shares) / len(shares) if shares else 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Asking(Measurable):
    """A job of the frontier: one step, and what is asked under it. `calibration` is text for what learns, or is to be reached."""

    model: str
    step: str
    asked: tuple[Task, ...]
    calibration: Int[Tensor, "count length"]
    every: int = 64
    device: str = "cpu"

    def check(self, shape: nn.Module, s: Step) -> None:
        ways_of(shape, (s if isinstance(s.budget, Budget) else dataclasses.replace(s, budget=Budget(1)),))

    def unmeasured(self) -> Point:
        if not self.step:
            return Point("", "dense", "dense", "")
        s = read(self.step)
        return Point(s.axis, str(s), s.what, str(s.budget))

    def said(self) -> tuple[Any, ...]:
        return self.every, self.asked, self.calibration if self.step else ""

    def measured(self) -> Point:
        model = opened(self.model, self.device)
        (found,) = recall(
            model, tokenizer_of(self.model), [self.step], self.asked, self.every, self.calibration.to(self.device)
        )
        both = {"read": found.read, "remembered": found.kept, "held": found.bytes, "seconds": found.seconds}
        return dataclasses.replace(
            self.unmeasured(),
            kept=found.read * found.kept,
            accuracy=found.accuracy,
            turns=found.turns,
            questions=found.accuracy.n,
            notes=found.notes,
            **both,
        )
