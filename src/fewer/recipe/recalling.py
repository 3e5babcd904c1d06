"""What a model still finds in a long text when it reads less of it, or remembers less: steps side by side, dense and random among them."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from fewer.core import find, methods
from fewer.data import Task, tasks
from fewer.measure import Estimate
from fewer.measure.answers import answers
from fewer.measure.estimate import share

from .act import apply
from .steps import Step, at_budgets, kind, recipe
from .ways import ways_of

CHOOSE = {"attention": "Pattern", "cache": "Evictor"}


@dataclass(frozen=True)
class Recalled:
    """One step, measured: the share of questions answered to the letter, in each turn too.

    `kept` is the share of tokens that is remembered at the end, `bytes` what that takes as a share of dense, places and tables
    included; both 1 where nothing is forgotten. `seconds` are for all of it.
    """

    step: str
    accuracy: Estimate
    turns: tuple[float, ...]
    kept: float
    bytes: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        row = asdict(self)
        return {**row, "accuracy": self.accuracy.value, "low": self.accuracy.low, "high": self.accuracy.high}


def questions(tokenizer: Any, tokens: int = 1024, count: int = 12, turns: int = 3, seed: int = 0) -> list[Task]:
    """Needles and a table in unrelated code, asked for one after the other: which, the text does not say before its end."""
    notes = tasks.needle(tokenizer, tokens, notes=8, questions=turns, count=(count + 1) // 2, seed=seed)
    return notes + tasks.table(tokenizer, tokens, rows=16, questions=turns, count=count // 2, seed=seed)


def steps_of(axes: Sequence[str], budgets: Sequence[str], given: Sequence[str] | None = None) -> list[Step | None]:
    """Dense (None), random and the methods of the axes, or those given, at each budget. `LookupError` for what there is not."""
    out: list[Step | None] = [None]
    for axis in axes:
        if axis not in CHOOSE:
            raise LookupError(f"axis {axis!r} is not one that reads or remembers; there are: {', '.join(CHOOSE)}")
        mine = [m if "/" in m else f"{axis}/{m}" for m in given or () if m.partition("/")[0] in (axis, m)]
        every = [n for n in methods(axis) if kind(find(n)) == CHOOSE[axis] and find(n).quick]
        for name in dict.fromkeys([f"{axis}/random", *(mine if given else every)]):
            out += at_budgets(name, budgets)
    return out


def recall(
    model: nn.Module,
    tokenizer: Any,
    steps: Iterable[str | Step | None],
    asked: Sequence[Task],
    every: int = 64,
) -> Iterator[Recalled]:
    """Ask the questions under each step (None or '' is dense). All steps are checked before the first is measured."""
    todo = [recipe(s) if s else () for s in steps]
    for mine in filter(None, todo):
        ways_of(model, mine)
    for mine in todo:
        begin = time.perf_counter()
        with apply(model, mine, every=every) if mine else contextlib.nullcontext() as applied:
            right = answers(model, tokenizer, asked, batch=1)
        changes = applied.changes if applied else []
        before, after = sum(c.bytes_before for c in changes), sum(c.bytes_after for c in changes)
        kept = sum(c.kept for c in changes) / len(changes) if changes else 1.0
        turns = tuple(sum(r[t] for r in right) / len(right) for t in range(len(right[0])))
        estimate = share(sum(map(sum, right)), sum(map(len, right)))
        stored, told = after / before if before else 1.0, "\n".join(map(str, mine)) or "dense"
        yield Recalled(told, estimate, turns, kept, stored, time.perf_counter() - begin)
