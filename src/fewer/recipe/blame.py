"""Gradients of the loss with one block in memory: once forwards, keeping what each block heard; then backwards, block by block.

Backwards, a block is run again with gradients on what it heard, and what is kept is the gradient of the loss by that. So
when the walk comes to a block, its weights' gradients take one more run of this block alone. All of it is of the dense
model, fed with what dense blocks say, as in the papers that prune by gradients. One window at a time: squares of
gradients are per window, and the mean over windows is the gradient of the mean loss.

For Hessian-gradient products the same is done to tangents: how far, if all maps move along the gradient, what each
block hears moves (forwards) and the gradient by it moves (backwards). Both are exact, by differentiating twice.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewer.calibrate import HessianGradient, Stat, Stats, see_gradient
from fewer.core import Site
from fewer.models.feed import call, enter, feed, finish
from fewer.models.loss import answer_of

from .walk import Walk

Flow = Sequence[Tensor | None]  # one for each floating tensor that a block says, or for each parameter
INTO = -1  # the stage before the blocks; the one after them has the number of the last stop


def of_gradients(kinds: Sequence[type[Stat]]) -> tuple[type[Stat], ...]:
    """Those of the statistics that see gradients: no forward run alone can fill them."""
    return tuple(k for k in kinds if k.see_grad is not Stat.see_grad or k.see_curve is not Stat.see_curve)


class Blame:
    """How much of each window's loss the dense model's blocks are to blame for, for the sites that `asked` names."""

    def __init__(self, walk: Walk, asked: Sequence[tuple[Site, tuple[type[Stat], ...]]]):
        walk.need_data()
        self.walk, self.price, self.windows = walk, walk.price, walk.windows
        self.last = len(walk.modules)
        self._here: dict[int, list[Site]] = {}
        self._curved: dict[int, list[Site]] = {}
        for site, kinds in asked:
            self._here.setdefault(walk.number(site), []).append(site)
            if HessianGradient in kinds:
                self._curved.setdefault(walk.number(site), []).append(site)
        none: list[Any] = [None] * len(self.windows)
        self.heard = [list(none) for _ in range(self.last + 1)]
        self.pull, self.slide, self.bend = ([list(none) for _ in range(self.last + 2)] for _ in range(3))
        self.pull[-1] = [[torch.ones(())] for _ in self.windows]
        self._forwards()
        self._backwards()
        if self._curved:
            self._tangents()
        for n in range(self.last):
            if n not in self._here:
                self.forget(n)

    def forget(self, number: int) -> None:
        """A block has been passed, or has no site: what it heard, and what its output is to blame for, can go."""
        for kept, stage in (
            (self.heard, number),
            (self.slide, number),
            (self.pull, number + 1),
            (self.bend, number + 1),
        ):
            if stage > 0 or self._first != INTO:
                kept[stage] = [None] * len(self.windows)

    @property
    def _first(self) -> int:
        """The earliest stage with a site; embeddings come before all blocks."""
        return INTO if self.last in self._here and self.last else min(self._here)

    @contextlib.contextmanager
    def _at(self, number: int) -> Iterator[None]:
        with self.walk.on(number), self.walk.near(number):
            yield

    def _forwards(self) -> None:
        """What every block hears, of every window."""
        with torch.no_grad():
            if self.last:
                with self.walk.near(self.last):
                    self.heard[0] = [self.walk.back(self._say(INTO, i, None)) for i in self._each]
            for n in range(self.last):
                with self._at(n):
                    self.heard[n + 1] = [self.walk.back(self._say(n, i, self._heard(n, i))) for i in self._each]

    def _backwards(self) -> None:
        """The gradient of the loss by what each stage hears."""
        for n in range(self.last, max(self._first, INTO), -1):
            with self._at(n):
                self.pull[n] = [self.walk.back(self._pass(n, i, [])[0]) for i in self._each]

    def _tangents(self) -> None:
        """How what a stage hears, and the gradient by it, move if the maps that ask move along the mean gradient."""
        for n in range(self._first, self.last):
            with self._at(self.last if n == INTO else n):
                along = self._along(n)
                self.slide[n + 1] = [self.walk.back(self._moved(n, i, *along)) for i in self._each]
        for n in range(self.last, max(self._first, INTO), -1):
            with self._at(n):
                along = self._along(n)
                self.bend[n] = [self.walk.back(self._turned(n, i, *along)[0]) for i in self._each]

    def at(self, number: int, wanted: Sequence[tuple[Site, tuple[type[Stat], ...]]]) -> dict[str, Stats]:
        """The statistics of gradients of these sites of one stop; call it with the stop's dense weights in place."""
        seen = {s.name: Stats({k: k.of(s.read()) for k in of_gradients(kinds)}) for s, kinds in wanted}
        found = [s for s, _ in wanted]
        along = self._along(number) if any(HessianGradient in kinds for _, kinds in wanted) else None
        for i in self._each:
            self._tell(found, seen, self.gradients(number, i, found), curve=False)
            if along:
                self._tell(found, seen, self._products(number, i, found, along), curve=True)
        for site in found:
            for stat in seen[site.name].values():
                stat.merge(self.walk.crew)
                if not stat.finite:
                    raise ValueError(f"{site.name}: its gradients are NaN or infinite; load the model in float32")
        return seen

    def _tell(self, found: Sequence[Site], seen: dict[str, Stats], grads: Flow, curve: bool) -> None:
        by = {id(p): g for p, g in zip(_parameters(found), grads, strict=True)}
        for site in found:
            grad = by[id(site.tensor)]
            see_gradient(site, seen[site.name], torch.zeros_like(site.tensor) if grad is None else grad, curve)

    def gradients(self, number: int, i: int, found: Sequence[Site]) -> Flow:
        """One window's gradient by each parameter of these sites of a stop."""
        asking = _parameters(found)
        grads = self._pass(number, i, asking)[1]
        return _sum(grads, self._pass(INTO, i, asking)[1]) if self._whole(number) else grads

    def _products(self, number: int, i: int, found: Sequence[Site], along: tuple[list[Tensor], Flow]) -> Flow:
        mine, wanted = along, _parameters(found)
        out = self._turned(number, i, *mine)[1]
        out = _sum(out, self._turned(INTO, i, *mine)[1]) if self._whole(number) else out
        by = {id(p): g for p, g in zip(mine[0], out, strict=True)}
        return [by.get(id(p)) for p in wanted]

    def _whole(self, number: int) -> bool:
        """Whether the stop is also the stage before the blocks: a tied embedding hears of both."""
        return number == self.last and self.last > 0

    def _along(self, number: int) -> tuple[list[Tensor], Flow]:
        """The parameters of a stage that move, and the mean gradient that they move along: zero outside of sites."""
        stop = self.last if number == INTO else number
        found = self._curved.get(stop, [])
        asking = _parameters(found)
        mean: list[Tensor] = [torch.zeros_like(p) for p in asking]
        for i in self._each if found else ():
            for m, g in zip(mean, self.gradients(stop, i, found), strict=True):
                m.lerp_(torch.zeros_like(m) if g is None else g, 1 / (i + 1))
        every = [self.walk.crew.mean(m, len(self.windows))[0] for m in mean]
        return asking, [m * _covered(p, found) for m, p in zip(every, asking, strict=True)]

    @property
    def _each(self) -> range:
        return range(len(self.windows))

    def _say(self, stage: int, i: int, heard: Any) -> Any:
        model, stack, window = self.walk.model, self.walk.modules, self.walk.there(self.windows[i])
        if stage == INTO:
            return enter(model, stack, window)
        if stage < self.last:
            return feed(model, stack, stage, window, heard)
        return self.price(answer_of(finish(model, stack, window, heard) if stack else call(model, window)), window)

    def _heard(self, stage: int, i: int) -> Any:
        return None if stage == INTO else self.walk.there(self.heard[stage][i])

    def _flow(self, kept: list[list[Any]], stage: int, i: int, like: Sequence[Tensor]) -> Flow:
        return self.walk.there(tuple(kept[stage][i])) if kept[stage][i] is not None else [None] * len(like)

    def _open(self, stage: int, i: int, asking: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Run a stage with gradients: what it was given (what it heard, then the parameters), and what it said."""
        heard = _leaves(self._heard(stage, i))
        return [*_floats(heard), *asking], _floats(self._say(stage, i, heard))

    def _pass(self, stage: int, i: int, asking: Sequence[Tensor]) -> tuple[Flow, Flow]:
        """The gradients of one window's loss by what a stage hears, and by the parameters that ask."""
        with torch.enable_grad(), _wanting(asking):
            given, said = self._open(stage, i, asking)
            found = _grad(said, given, self._flow(self.pull, stage + 1, i, said))
        return tuple(found[: len(given) - len(asking)]), found[len(given) - len(asking) :]

    def _moved(self, stage: int, i: int, asking: list[Tensor], along: Flow) -> Flow:
        """The tangent of what a stage says: the transpose of its transpose, which autograd knows."""
        with torch.enable_grad(), _wanting(asking), sdpa_kernel(SDPBackend.MATH):
            given, said = self._open(stage, i, asking)
            by = [torch.zeros_like(s).requires_grad_() for s in said]
            back = _grad(said, given, by, twice=True)
            return tuple(_grad(back, by, self._tangent(stage, i, given, asking, along)))

    def _turned(self, stage: int, i: int, asking: list[Tensor], along: Flow) -> tuple[Flow, Flow]:
        """The tangent of the gradients that `_pass` gives: how they change along the tangents of all they depend on."""
        with torch.enable_grad(), _wanting(asking), sdpa_kernel(SDPBackend.MATH):
            given, said = self._open(stage, i, asking)
            first = _grad(said, given, self._flow(self.pull, stage + 1, i, said), twice=True)
            moves = [*self._tangent(stage, i, given, asking, along), *self._flow(self.bend, stage + 1, i, said)]
            found = _grad([*first, *said], given, moves)
        return tuple(found[: len(given) - len(asking)]), found[len(given) - len(asking) :]

    def _tangent(self, stage: int, i: int, given: list[Tensor], asking: Sequence[Tensor], along: Flow) -> Flow:
        heard = given[: len(given) - len(asking)]
        return [*(self._flow(self.slide, stage, i, heard) if stage != INTO else ()), *along]


def _grad(of: Sequence[Tensor | None], by: Sequence[Tensor], pulls: Flow, twice: bool = False) -> list[Tensor | None]:
    """`torch.autograd.grad`, with None for what does not depend, or is not pulled at."""
    pairs = [(o, p) for o, p in zip(of, pulls, strict=True) if o is not None and o.requires_grad and p is not None]
    if not pairs or not by:
        return [None] * len(by)
    outputs, grads = [o for o, _ in pairs], [p for _, p in pairs]
    return list(torch.autograd.grad(outputs, by, grads, create_graph=twice, allow_unused=True))


def _sum(a: Flow, b: Flow) -> Flow:
    return [y if x is None else x if y is None else x + y for x, y in zip(a, b, strict=True)]


def _parameters(found: Sequence[Site]) -> list[Tensor]:
    """Each once: a parameter may be several sites."""
    return list({id(s.tensor): s.tensor for s in found}.values())


def _covered(parameter: Tensor, found: Sequence[Site]) -> Tensor:
    """1 where a parameter is one of the sites, 0 elsewhere."""
    mask = torch.zeros_like(parameter)
    for site in found:
        if site.tensor is parameter:
            place = mask if site.index is None else mask[site.index]
            place = place.mT if site.transposed else place
            place[slice(None) if site.part is None else site.part] = 1
    return mask


@contextlib.contextmanager
def _wanting(parameters: Sequence[Tensor]) -> Iterator[None]:
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, wanted in zip(parameters, before, strict=True):
            p.requires_grad_(wanted)


def _leaves(heard: Any) -> Any:
    if isinstance(heard, tuple):
        return tuple(_leaves(part) for part in heard)
    return heard.detach().requires_grad_() if isinstance(heard, Tensor) and heard.is_floating_point() else heard


def _floats(said: Any) -> list[Tensor]:
    parts = said if isinstance(said, tuple) else (said,)
    return [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
