"""What a model still finds in a long text when it reads less of it, or remembers less: steps side by side, dense and random among them."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from fewer.core import find, methods
from fewer.data import Task, tasks
from fewer.measure import Estimate
from fewer.measure.answers import answers
from fewer.measure.estimate import share

from .act import apply
from .steps import kind, step
from .ways import ways_of

BUDGETS = ("25%", "12.5%")
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


def steps_of(axes: Sequence[str], budgets: Sequence[str], given: Sequence[str] | None = None) -> list[str]:
    """Dense (''), random and the methods of the axes, or those given, at each budget. `LookupError` for what there is not."""
    out = [""]
    for axis in axes:
        if axis not in CHOOSE:
            raise LookupError(f"axis {axis!r} is not one that reads or remembers; there are: {', '.join(CHOOSE)}")
        mine = [m if "/" in m else f"{axis}/{m}" for m in given or () if m.partition("/")[0] in (axis, m)]
        every = [n for n in methods(axis) if kind(find(n)) in (CHOOSE[axis], "ByScore", "ByPlace") and find(n).quick]
        names = dict.fromkeys([f"{axis}/random", *(mine if given else every)])
        out += [str(step(f"{_head(n)} {b}{_rest(n)}")) for n in names for b in budgets]
    return out


def _head(text: str) -> str:
    return text.partition(" ")[0]


def _rest(text: str) -> str:
    return text[len(_head(text)) :]


def recall(
    model: nn.Module,
    tokenizer: Any,
    steps: Sequence[str],
    asked: Sequence[Task],
    found: Callable[[Recalled], None] | None = None,
    every: int = 64,
) -> Iterator[Recalled]:
    """Ask the questions under each step ('' is dense). All steps are checked before the first is measured."""
    for text in filter(None, steps):
        ways_of(model, (step(text),))
    for text in steps:
        begin = time.perf_counter()
        if text:
            with apply(model, text, every=every) as applied:
                right = answers(model, tokenizer, asked, batch=1)
            changes = applied.changes
        else:
            right, changes = answers(model, tokenizer, asked, batch=1), []
        before, after = sum(c.bytes_before for c in changes), sum(c.bytes_after for c in changes)
        kept = sum(c.kept for c in changes) / len(changes) if changes else 1.0
        turns = tuple(sum(r[t] for r in right) / len(right) for t in range(len(right[0])))
        estimate = share(sum(map(sum, right)), sum(map(len, right)))
        out = Recalled(
            text or "dense", estimate, turns, kept, after / before if before else 1.0, time.perf_counter() - begin
        )
        if found:
            found(out)
        yield out
