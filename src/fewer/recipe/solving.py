"""From what a budget is to reach (bytes, mass, error, milliseconds) to budgets: of each attention module, before anything runs."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from fewer.attention import Pattern
from fewer.attention._act import Answer, dense, sparse
from fewer.cache._act import Forgetting, received
from fewer.cache._store import Store
from fewer.core import Budget, Target
from fewer.core.target import Bytes, Error, Mass, Seconds
from fewer.models.cache_layer import Asked

from .hearing import WHOLE, acting, heard, slots_of
from .meter import compared
from .own import learns
from .phases import PHASES
from .steps import Recipe, Step
from .timing import in_time
from .ways import Ways

PARTS = 128  # shares that are tried are whole numbers of these
WINDOWS, PLACES = 2, 8  # of the data, at most; queries of a window that stand for decoding


@dataclass(frozen=True)
class Solved:
    """Steps with budgets, and in words what was found for each target."""

    steps: Recipe
    notes: tuple[str, ...] = ()


def solved(model: nn.Module, steps: Recipe, data: Tensor | None = None) -> Solved:
    """Every target among the budgets replaced by the least budget that reaches it. ValueError if none does, or data are missing.

    Mass and error are measured on `data`, which the dense model reads once, module by module; without data, a pattern that
    counts the mass that its scores promise stops there (its field `p`). Time is that of the kernels, by their measured costs.
    """
    out: list[Step] = []
    notes: list[str] = []
    for s in steps:
        more, said = SOLVERS[type(s.budget)](model, s, data) if isinstance(s.budget, Target) else ([s], [])
        out += more
        notes += said
    return Solved(tuple(out), tuple(notes))


def _bytes(model: nn.Module, s: Step, data: Tensor | None) -> tuple[list[Step], list[str]]:
    target, slots = s.budget, slots_of(model, s)
    assert isinstance(target, Bytes)
    each = sum(size for _, _, size in slots.values())
    if target.each:
        share = Fraction(target.amount) / Fraction(each)
        budget = WHOLE if share >= 1 else Budget(Fraction(math.floor(share * 10**4), 10**4) or Fraction(1, 10**4))
    else:
        page = max(w.page for w, _, _ in slots.values())
        if (pages := int(target.amount / (each * page))) < 1:
            raise ValueError(
                f"'{s}': a page of {page} tokens takes {each * page:.0f} bytes at these {len(slots)} modules; write that or more"
            )
        budget = Budget(pages * page)
    said = f"{s.method.name} {target}: {budget}, as a token takes {each:.0f} bytes at {len(slots)} modules"
    return [replace(s, budget=budget)], [said]


def _reaching(model: nn.Module, s: Step, data: Tensor | None) -> tuple[list[Step], list[str]]:
    """The least share that reaches a mass, or an error, on the data: each module's own, one for all if somebody divides it."""
    target = s.budget
    assert isinstance(target, Mass | Error)
    if data is None:
        if isinstance(target, Mass) and "p" in getattr(s.method, "__dataclass_fields__", {}) and target.share < 1:
            step = replace(s, method=replace(s.method, p=float(target.share)), budget=WHOLE)
            return [step], [f"{s.method.name} {target}: as its scores promise it; with data it is measured"]
        raise ValueError(f"'{s}' is measured on text: give data, [windows, length] token ids")
    ways, asked = acting(model, s), heard(model, data[:WINDOWS])
    trials = {m: [t for one in asked[m] for t in _trials(w, one)] for m, w in ways.items()}

    def reached(modules: list[nn.Module], n: int) -> float | None:
        """What comes of n parts, if that is enough."""
        seen = [compared(*trial(Budget(Fraction(n, PARTS)))) for m in modules for trial in trials[m]]
        mass, wrong, truth = (torch.cat([part.flatten() for part in some]) for some in zip(*seen, strict=True))
        found = mass.mean() if isinstance(target, Mass) else (wrong.sum() / truth.sum()).sqrt()
        enough = found >= float(target.share) - 1e-6 if isinstance(target, Mass) else found <= float(target.share)
        return found.item() if enough else None

    found: dict[int, list[str]] = {}
    for group in [list(ways)] if s.allocator else [[m] for m in ways]:
        least = _least(lambda n, group=group: reached(group, n) is not None, s)  # type: ignore[misc]
        found.setdefault(least, []).extend(ways[m].name for m in group)
    phases = [w.strip() for w in s.where.split(",") if w.strip() in PHASES]
    steps = []
    for n, names in sorted(found.items()):
        where = s.where if len(found) == 1 else ", ".join(names + phases)
        steps.append(replace(s, budget=Budget(Fraction(n, PARTS)), where=where))
    said = ", ".join(
        f"{step.budget} at {len(found[n])} of {len(ways)} modules" for n, step in zip(sorted(found), steps, strict=True)
    )
    return steps, [f"{s.method.name} {target}: {said}"]


def _least(enough: Callable[[int], bool], s: Step) -> int:
    """The least number of parts that is enough, by halving: more is taken to be no worse."""
    if not enough(PARTS):
        raise ValueError(f"'{s}' is not reached even where all of the budget may be read: its method leaves out more")
    low, high = 0, PARTS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


Trial = Callable[[Budget], tuple[Answer, Answer]]


def _trials(w: Ways, a: Asked) -> Iterator[Trial]:
    """What can be asked of a module's way under a budget: its answer, and the dense one; of the second half of a window."""
    keys = a.k.shape[2]
    half = keys // 2
    at, _ = a.alone()
    if w.forget is not None:
        yield _forgetting(w, a, at, half)
        return
    if w.prefill is not None:
        whole = dense(a.q[:, :, half:], a.k, a.v, at, at[:, 0, half:], a.scale, a.window, a.cap)
        m = _learnt(w.prefill.method, w.name, a)

        def prefill(budget: Budget) -> tuple[Answer, Answer]:
            out, lse = sparse(m, budget, a.q, a.k, a.v, at, at[:, 0], a.scale, a.window, a.cap)
            return (out[:, :, half:], lse[:, :, half:]), whole

        yield prefill
    for place in torch.linspace(half, keys - 1, PLACES).long().tolist() if w.decode is not None else ():
        yield _decoding(_learnt(w.decode.method, w.name, a), a, at, place)  # type: ignore[union-attr]


def _decoding(m: Pattern, a: Asked, at: Tensor, place: int) -> Trial:
    q, k, v, at = a.q[:, :, place : place + 1], *(x[:, :, : place + 1] for x in (a.k, a.v, at))
    rest = at[:, 0, place:], a.scale, a.window, a.cap
    whole = dense(q, k, v, at, *rest)
    return lambda budget: (sparse(m, budget, q, k, v, at, *rest), whole)


def _learnt(m: Pattern, name: str, a: Asked) -> Pattern:
    m = m.at(name)
    return m.fit(a.q, a.k) if learns(m) else m


def _forgetting(w: Ways, a: Asked, at: Tensor, half: int) -> Trial:
    """The first half is remembered under the budget, and the second reads what is left of it, and itself."""
    forget = w.forget
    assert isinstance(forget, Forgetting)
    rest = at[:, 0, half:], a.scale, a.window, a.cap
    whole = dense(a.q[:, :, half:], a.k, a.v, at, *rest)
    q, k, v = (x[:, :, :half] for x in (a.q, a.k, a.v))
    first = at[:, 0, :half]
    window = forget.evictor.window or half

    def trial(budget: Budget) -> tuple[Answer, Answer]:
        store = Store(w.page, w.form)
        store.append(k, v, first)
        if forget.counts_received:
            may = first[:, None, :, None] >= first[:, None, None]
            store.put("received", received(q, k, may, a.scale, a.cap))
        seen = torch.tensor([half], device=k.device)
        replace(forget, budget=budget)(store, q[:, :, -window:], first[:, -window:], seen, a.scale, w.rope)
        store.settle()
        left_k, left_v, left_at = store.read()
        every = (
            torch.cat([x.to(y.dtype), y[:, :, half:]], 2) for x, y in ((left_k, a.k), (left_v, a.v), (left_at, at))
        )
        return dense(a.q[:, :, half:], *every, *rest), whole

    return trial


SOLVERS = {Bytes: _bytes, Mass: _reaching, Error: _reaching, Seconds: in_time}
