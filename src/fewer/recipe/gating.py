"""Steps of the axis `activations` in a running model: which inputs of its maps each token multiplies."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewer.activations import Predictor, Pressed, Remembering
from fewer.core import Change
from fewer.kernels import gated_linear
from fewer.kernels.gated_linear import MOST

from .columns import by_columns, fits
from .forwarded import forwarded
from .gates import Place, scores
from .passage import Passage, passing

Original = Callable[..., Tensor]


@dataclass(eq=False)
class Gating:
    """What the gates of a model do while it runs, and what they have left out so far."""

    places: list[Place]
    passage: Passage | None = None
    acting: Collection[Place] | None = (
        None  # those that act while data are heard block by block; None: all, in a run of the model
    )
    hear: Callable[[Place, Tensor], None] | None = None  # who is told what each gate listens to
    learning: float | None = None  # how far a model that learns with the gates has come, 0 to 1
    prices: list[Tensor] = field(default_factory=list)  # and what its hidden neurons cost since they were last taken
    memory: dict[Place, list[Tensor]] = field(default_factory=dict)  # a tensor for each row
    opened: dict[Place, Tensor] = field(default_factory=dict)  # what a gate sees that is not what its map reads
    kept: dict[Place, Tensor] = field(default_factory=dict)  # inputs that were computed,
    asked: dict[Place, int] = field(default_factory=dict)  # and tokens that were gated

    def heard(self, p: Place, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the map hears in x's place, and what is added to what it says."""
        seen = self._seen(p, x) if p.before or p.act is not None else x
        if self.hear is not None:
            self.hear(p, seen)
        if self.learning is not None and isinstance(p.gate, Pressed):
            self.prices.append(p.gate.penalty(x, self.learning))
        if p.budget.whole or (self.acting is not None and p not in self.acting):
            return x, None
        if isinstance(p.gate, Remembering):
            return self._remembered(p, x, seen), None
        keep = self._keep(p, seen)
        when = self._when(p, x)
        self._count(p, keep, when)
        if when is not None:
            keep = keep | ~when[..., None]
        rest = p.gate.rest(x.masked_fill(keep, 0), p.budget, p.stats)
        return p.gate.heard(x, keep), rest

    def _seen(self, p: Place, x: Tensor) -> Tensor:
        """What was kept for a place before its map is asked: what its MLP's activation said, or what a predictor hears."""
        seen = self.opened.pop(p, None)
        if seen is None or seen.shape[:-1] != x.shape[:-1] or (p.act is not None and seen.shape != x.shape):
            there, whose = (
                "nothing" if seen is None else f"{tuple(seen.shape)}",
                "predictor" if p.before else "activation",
            )
            raise ValueError(f"{p.name} reads {tuple(x.shape)}, and its MLP's {whose} was given {there} before it")
        return seen

    def _keep(self, p: Place, seen: Tensor) -> Tensor:
        if p.cut is not None:
            return scores(p, seen) > p.cut
        return p.gate.gate(seen, p.budget, p.stats)

    def _when(self, p: Place, x: Tensor) -> Tensor | None:
        """Which tokens are gated; None for all."""
        passage = self.passage
        if self.acting is not None:
            return None
        if passage is None:
            if p.beyond or len(p.phases) == 1:
                raise ValueError(
                    f"'{p.step}': where a token stands is told by token ids alone; leave out the words on phases"
                )
            return None
        if passage.phase not in p.phases:
            return torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
        if not p.beyond:
            return None
        return passage.of(x, p.name, passage.places >= p.beyond)

    def _count(self, p: Place, keep: Tensor, when: Tensor | None) -> None:
        kept = keep.sum(-1) if when is None else keep.sum(-1) * when
        self.kept[p] = self.kept.get(p, 0) + kept.sum(dtype=torch.int64)
        self.asked[p] = self.asked.get(p, 0) + (kept.numel() if when is None else int(when.sum()))

    def _remembered(self, p: Place, x: Tensor, seen: Tensor) -> Tensor:
        """A gate that knows its text: the first run, or its first `beyond` tokens, is what it begins with."""
        passage, gate = self.passage, p.gate
        assert isinstance(gate, Remembering)
        if passage is None:
            raise ValueError(f"'{p.step}': a text is told by token ids alone, and this run of the model has none")
        shape, rows = x.shape, passage.places.shape[0]
        x, seen = (passage.of(x, p.name, t).reshape(rows, -1, shape[-1]) for t in (x, seen))
        if passage.first:
            self.memory[p] = [torch.empty(0)] * rows
        out = x.clone()
        for row in range(rows):
            real = passage.real[row].nonzero()[:, 0].tolist()
            if passage.first:
                begin = real[: p.beyond] if p.beyond else real
                self.memory[p][row] = gate.begin(seen[row, begin], p.budget, p.stats)
                real = real[len(begin) :]
            for i in real:
                self._next(p, gate, seen, x, out, row, i)
        return out.reshape(shape)

    def _next(self, p: Place, gate: Remembering, seen: Tensor, x: Tensor, out: Tensor, row: int, i: int) -> None:
        keep, heard, self.memory[p][row] = gate.next(seen[row, i], self.memory[p][row], p.budget, p.stats)
        self._count(p, keep, None)
        out[row, i] = heard if p.act is None else x[row, i] * keep

    def priced(self) -> Tensor | float:
        """What hidden neurons cost in the run that has just been, all MLPs together."""
        prices, self.prices = self.prices, []
        return torch.stack(prices).sum() if prices else 0.0

    def reorder(self, rows: Tensor) -> None:
        """Beams changed places, and what they remember goes with them."""
        self.memory = {p: [some[i] for i in rows.tolist()] for p, some in self.memory.items()}

    def density(self, p: Place) -> float:
        """The share of inputs that gated tokens computed."""
        return float(self.kept.get(p, 0)) / max(1, self.asked.get(p, 0)) / p.site.shape[1]

    def changes(self) -> list[Change]:
        """A line for each place that a token has passed: the share of inputs, and the bytes of weights, that a token reads."""
        out = []
        for p in self.places:
            if self.asked.get(p):
                kept, size = self.density(p), p.site.tensor.element_size()
                always = p.gate.always(*p.site.shape, p.budget)
                read = (p.weights - p.saved + kept * p.saved + always) * size
                out.append(
                    Change(
                        p.name,
                        p.step.what,
                        str(p.budget),
                        kept,
                        p.weights * size,
                        round(read),
                        "columns",
                        weights=p.weights,
                    )
                )
        return out


@contextlib.contextmanager
def gating(model: nn.Module, places: Sequence[Place]) -> Iterator[Gating]:
    """The gates stand in the model while this is open."""
    engine = Gating(list(places))
    modules: dict[nn.Module, list[Place]] = {}
    for p in engine.places:
        modules.setdefault(p.site.module, []).append(p)
    with contextlib.ExitStack() as stack:
        stack.enter_context(by_columns([p.site for p in engine.places]))
        stack.enter_context(passing(model, engine))
        for module, here in modules.items():
            stack.enter_context(forwarded(module, _around(module.forward, _gated(engine, here))))
        for p in engine.places:
            if p.before:
                stack.callback(_listen(engine, p).remove)
            if p.act is not None:
                hook = p.act.register_forward_hook(lambda _, args, said, p=p: engine.opened.update({p: said}))
                stack.callback(hook.remove)
        yield engine


def _listen(engine: Gating, p: Place) -> Any:
    """What the MLP of a predictor hears, or the first of all of them, is kept until its neurons are there."""
    gate = p.gate
    assert isinstance(gate, Predictor)
    home = next(q for q in engine.places if q.step is p.step) if gate.first else p
    assert home.group is not None
    module = home.group.writers[0].module
    return module.register_forward_pre_hook(lambda _, args: engine.opened.update({p: args[0]}))


def _gated(engine: Gating, here: list[Place]) -> Callable[[Original, Tensor], Tensor]:
    """What a module says when its places hear what they are to hear."""
    if len(here) == 1 and here[0].site.part is None:
        (p,), columns = here, fits(here[0].site)

        def alone(original: Original, x: Tensor) -> Tensor:
            heard, rest = engine.heard(p, x)
            few = columns and heard is not x and x.numel() <= MOST * x.shape[-1]
            said = gated_linear(heard, p.site.read(), bias=p.site.bias) if few else original(heard)
            return said if rest is None else said + rest.to(said.dtype)

        return alone

    def parts(original: Original, x: Tensor) -> Tensor:
        said = original(x)
        for p in here:
            heard, rest = engine.heard(p, x)
            if heard is not x:
                bias = p.site.bias if p.site.bias is None else p.site.bias[p.site.part]
                own = F.linear(heard, p.site.read(), bias)
                said[..., p.site.part] = own if rest is None else own + rest.to(own.dtype)
        return said

    return parts


def _around(original: Original, say: Callable[[Original, Tensor], Tensor]) -> Original:
    """A map's `forward` that goes through `say`, however x is handed over."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        (x,) = (*args, *kwargs.values())
        return say(original, x)

    return forward
