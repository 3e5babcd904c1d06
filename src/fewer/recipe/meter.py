"""The quality meter: while a model runs, some rows of its attention are done exactly as well, and budgets that fall short grow."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewer.attention._act import Answer, dense
from fewer.cache._store import Store
from fewer.core import Budget, Change
from fewer.measure import Estimate
from fewer.measure.estimate import mean
from fewer.models.cache_layer import Asked, Engine, Memory

from .ways import Ways


@dataclass(frozen=True)
class Meter:
    """How closely to look: of each prefill `rows` queries, while decoding each `every`-th step.

    These read every key that there has been; where tokens are forgotten, all are kept for that, in the model's dtype. While the
    mean of the mass kept at a module lies below `floor`, what it says is replaced by what it should say, and its budget doubles; at
    the whole it is dense.
    """

    every: int = 16
    rows: int = 32
    floor: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.rows < 1:
            raise ValueError(
                f"every={self.every}, rows={self.rows}: a meter looks at 1 of so many steps, at 1 row or more"
            )
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor={self.floor}: a share of the attention's mass, from 0 to 1")


@dataclass(frozen=True)
class Reading:
    """What the meter saw at one head of a module, in one phase: of `rows` rows, the mean share of the attention's mass that was read,
    and the length of the error as a share of the truth's, before sinks take their part. `budget` is what it is by now."""

    module: str
    phase: str
    head: int
    mass: Estimate
    error: float
    rows: int
    budget: str

    def as_dict(self) -> dict[str, Any]:
        row = asdict(self)
        return row | {"mass": self.mass.value, "mass_low": self.mass.low, "mass_high": self.mass.high}


@dataclass(eq=False)
class Seen:
    """All that was seen of a module in a phase: of each row the heads' kept mass, and the squares of error and truth."""

    mass: list[Float[Tensor, "rows heads"]] = field(default_factory=list)
    wrong: list[Float[Tensor, "rows heads"]] = field(default_factory=list)
    truth: list[Float[Tensor, "rows heads"]] = field(default_factory=list)
    since: int = 0  # of `mass`, those before the budget last grew

    def take(self, got: Answer, true: Answer) -> None:
        mass, wrong, truth = compared(got, true)
        self.mass.append(mass)
        self.wrong.append(wrong)
        self.truth.append(truth)

    @property
    def kept(self) -> float:
        """The mean kept mass under the budget of now."""
        return torch.cat(self.mass[self.since :]).mean().item()

    @property
    def error(self) -> Float[Tensor, " heads"]:
        return (torch.cat(self.wrong).sum(0) / torch.cat(self.truth).sum(0).clamp(min=1e-30)).sqrt()


def compared(got: Answer, true: Answer) -> tuple[Tensor, Tensor, Tensor]:
    """`[rows, heads]`, of the rows that read anything: exp(lse - lse of all), |out - out of all|^2, |out of all|^2.

    The first is the softmax's mass on what was read, as its denominator is a sum over keys.
    """
    (out, lse), (all_out, all_lse) = got, true
    some = (all_lse > -torch.inf).all(1)  # [batch, rows]
    mass = (lse.double() - all_lse.double()).exp()
    wrong = (out.double() - all_out.double()).square().sum(-1)
    parts = (mass, wrong, all_out.double().square().sum(-1))
    return tuple(x.transpose(1, 2)[some].cpu() for x in parts)  # type: ignore[return-value]


@dataclass(eq=False)
class Shadow(Memory):
    """What a module remembers, and beside it, where it forgets, all that there has been."""

    engine: "Metered"
    inner: Any  # a memory of the engine that is watched
    every: Store | None = None
    calls: int = 0

    @property
    def seen(self) -> int:  # type: ignore[override]
        return self.inner.seen

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.inner.rows

    @property
    def bare(self) -> Any:
        return self.inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def crop(self, tokens: int) -> None:
        self.inner.crop(tokens)
        if self.every is not None and self.every.k is not None:
            self.every.crop(self.inner.seen)

    def pick(self, rows: Tensor) -> None:
        self.inner.pick(rows)
        if self.every is not None and self.every.k is not None:
            self.every.pick(rows)


@dataclass(eq=False)
class Metered(Engine):
    """An engine that is watched."""

    inner: Any  # Attending
    meter: Meter
    found: dict[tuple[nn.Module, str], Seen] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)  # in words, as it happened

    @property
    def bare(self) -> Any:
        return self.inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not made yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def memory(self, module: nn.Module) -> Shadow:
        ways = self.inner.ways[module]
        forgets = ways.forget is not None or getattr(ways, "form", None) is not None
        return Shadow(self, self.inner.memory(module), Store() if forgets else None)

    def attend(self, module: nn.Module, asked: Asked, memory: Shadow | None) -> Tensor:
        inner, new = self.inner, asked.q.shape[2]
        before = 0 if memory is None else memory.seen
        inner.last = None
        out = inner.attend(module, asked, None if memory is None else memory.inner)
        got, phase = inner.last, "prefill" if new > 1 else "decode"
        if memory is not None:
            memory.calls += 1
            if memory.every is not None:
                memory.every.append(asked.k, asked.v, asked.places(before))
        if got is None or asked.mask is not None or not asked.causal:
            return out
        if phase == "decode" and memory is not None and memory.calls % self.meter.every:
            return out
        seen = self.found.setdefault((module, phase), Seen())
        rows = self._rows(new, (inner.ways[module].number, len(seen.mass)), asked.q.device)
        seen.take((got[0][:, :, rows], got[1][:, :, rows]), self._exact(asked, memory, before, rows))
        if seen.kept >= self.meter.floor:
            return out
        self._grow(module, phase, seen, before, new)
        whole = self._exact(asked, memory, before, torch.arange(new, device=rows.device))
        return inner.told(whole, asked)

    def _rows(self, new: int, turn: tuple[int, int], device: torch.device) -> Tensor:
        """One query of each of as many stretches as rows are asked for: drawn, other ones at each module and time."""
        ends = torch.linspace(0, new, min(self.meter.rows, new) + 1).long()
        make = torch.Generator().manual_seed(
            hash((self.meter.seed, *turn)) % 2**31
        )  # of whole numbers: the same in each run
        draw = torch.rand(len(ends) - 1, generator=make)
        return (ends[:-1] + (draw * (ends[1:] - ends[:-1])).long()).to(device)

    def _exact(self, asked: Asked, memory: Shadow | None, before: int, rows: Tensor) -> Answer:
        a = asked
        if memory is None:
            k, v, (at, now) = a.k, a.v, a.alone()
        else:
            now, (k, v, at) = a.places(before), (memory.every or memory.inner.store).read()
        return dense(a.q[:, :, rows], k.to(a.q.dtype), v.to(a.q.dtype), at, now[:, rows], a.scale, a.window, a.cap)

    def _grow(self, module: nn.Module, phase: str, seen: Seen, before: int, new: int) -> None:
        ways = self.inner.ways[module]
        fresh, said = wider(ways, phase, before + new, before > 0)
        if said:
            self.changed.append(f"{ways.name}, {phase}: {seen.kept:.2f} of the mass was kept; {said}")
        self.inner.ways[module] = fresh
        for m in self.inner.made:
            if m.ways is ways:
                m.ways = fresh
        seen.since = len(seen.mass)

    def readings(self) -> list[Reading]:
        """A line for each module, phase and head."""
        out = []
        for (module, phase), seen in self.found.items():
            ways, mass = self.inner.ways[module], torch.cat(seen.mass)
            for head, error in enumerate(seen.error.tolist()):
                told = mean(mass[:, head]), error, len(mass), amount(ways, phase)
                out.append(Reading(ways.name, phase, head, *told))
        return out

    def changes(self) -> list[Change]:
        """The engine's, with the error that was seen in all phases."""
        out = []
        for change in self.inner.changes():
            mine = [s for (m, _), s in self.found.items() if self.inner.ways[m].name == change.site]
            if mine:
                wrong, truth = (sum(torch.cat(getattr(s, n)).sum().item() for s in mine) for n in ("wrong", "truth"))
                change = replace(change, error=wrong / max(truth, 1e-30))
            out.append(change)
        return out


def amount(ways: Ways, phase: str) -> str:
    """The budgets of a phase, as they are by now."""
    step = getattr(ways, phase)
    parts = [str(b) for b in (step and step.budget, ways.forget and ways.forget.budget) if b]
    return " of ".join(parts) or "100%"


def wider(ways: Ways, phase: str, tokens: int, forgot: bool) -> tuple[Ways, str]:
    """The same module with twice the budget in this phase, and in words what has become of it; '' if it is dense already.

    Where something may have been forgotten, the budget of that doubles too.
    """
    said: list[str] = []
    if (step := getattr(ways, phase)) is not None:
        budget = doubled(step.budget, tokens)
        # What chooses for itself how much it reads of a whole budget is not made wider by a larger one.
        whole = budget is None or step.budget.whole
        ways = replace(ways, **{phase: None if whole else replace(step, budget=budget)})
        said.append("dense from now on" if whole else f"{budget} instead of {step.budget} from now on")
    if ways.forget is not None and forgot:
        budget = doubled(ways.forget.budget, tokens)
        was, now = ways.forget.budget, Budget(Fraction(1)) if budget is None else budget
        ways = replace(ways, forget=replace(ways.forget, budget=now))
        if now != was:
            said.append(f"{now} instead of {was} remembered from now on")
    return ways, "; ".join(said)


def doubled(budget: Budget, tokens: int) -> Budget | None:
    """Twice as much; None if that is everything."""
    more = budget.keep * 2
    whole = more >= 1 if isinstance(more, Fraction) else more >= tokens
    return None if whole else replace(budget, keep=more)


def lines(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """The readings as rows of a table, heads of a module together: the mean and the least of their mass."""
    rows: dict[tuple[str, str], list[Reading]] = {}
    for r in readings:
        rows.setdefault((r.module, r.phase), []).append(r)
    return [
        {
            "module": module,
            "phase": phase,
            "budget": some[0].budget,
            "mass": sum(r.mass.value for r in some) / len(some),
            "least": min(r.mass.value for r in some),
            "error": sum(r.error for r in some) / len(some),
            "rows": some[0].rows,
        }
        for (module, phase), some in rows.items()
    ]
