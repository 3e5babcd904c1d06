"""Steps of the axes `attention` and `cache` in a running model: what each of its attention modules reads, and remembers."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fewer.attention import ByScore, Pattern
from fewer.attention._act import allowed_slots, best_blocks, dense, merged, newest_block, pages_of, pick, sparse
from fewer.attention._correct import corrected, weights_of
from fewer.cache._act import greatest, received
from fewer.cache._store import Store
from fewer.core import Change
from fewer.kernels import attend_pages
from fewer.models.attention import attended
from fewer.models.cache_layer import Asked, Engine

from .meter import Meter, Metered
from .mixing import mixed, noted, parted
from .own import Own
from .phases import FEW
from .refreshed import refreshed
from .remembered import Remembered
from .reread import reread
from .steps import Recipe, Step
from .ways import Ways, refresher_of, rereader_of, ways_of

AXES = ("attention", "cache")


@dataclass(eq=False)
class Attending(Engine):
    """The engine of a model's attention modules: `every` is how many tokens may come, while decoding, before some are
    forgotten again."""

    ways: dict[nn.Module, Ways]
    every: int = 64
    made: list[Remembered] = field(default_factory=list)
    own: Own = field(default_factory=Own)
    training: bool = False  # the module that attends
    last: tuple[Tensor, Tensor] | None = None  # output and logarithm of the denominator, where they were made
    owed: list[Tensor] | None = (
        None  # a list is given what parts learn from beside the task, layer by layer, run by run
    )
    chosen: tuple[Tensor, int] | None = (
        None  # the blocks that the last that looked, a layer or a step ago, chose; of how many slots
    )
    dense: bool = False  # for now, all is read
    waits: list[tuple[Remembered, float]] | None = None  # who will forget later, and its scale
    asks: bool = False  # for now, tokens are said again, and what they read is noted
    _read: tuple[Tensor, bool] | None = None  # a mask of padding, and whether the newest token of each row is real

    def memory(self, module: nn.Module) -> Remembered:
        ways = self.ways[module]
        self.made = [m for m in self.made if m.ways is not ways] + [Remembered(self, ways, Store(ways.page, ways.form))]
        return self.made[-1]

    def attend(self, module: nn.Module, asked: Asked, memory: Remembered | None) -> Tensor:
        ways, new, self.training = self.ways[module], asked.q.shape[2], module.training
        if memory is None or memory.seen == 0:
            self.own.hear(ways.name, ways.patterns, asked)
        self.own.listen(ways.name, ways.patterns, asked, memory)
        if memory is None:
            return self._apart(ways, asked)
        if ways.mixer is not None:
            asked = noted(ways.mixer, asked, ways.parts, ways.number)
        first, plain = memory.seen == 0, asked.mask is None and asked.causal
        one = new == 1 and not first and plain and self._all_real(asked)
        now, asked = memory.step(asked) if one else memory.take(asked)
        if first:
            at = now[:, None].expand(-1, asked.k.shape[1], -1)
            out = self._many(ways, asked, asked.k, asked.v, at, now)
        elif new <= FEW and plain and ways.mixer is None:
            out = self._few(memory, asked, now)
        else:
            k, v, at = memory.store.read()
            out = self._many(ways, asked, k.to(asked.q.dtype), v.to(asked.q.dtype), at, now)
        if ways.forget is not None:
            self._forget(memory, asked, now, new)
        memory.store.settle()
        return out

    def _all_real(self, asked: Asked) -> bool:
        """Whether no row's new token is padding; of one mask, which all layers share, it is asked once."""
        if asked.real is None:
            return True
        if self._read is None or self._read[0] is not asked.real:
            self._read = asked.real, bool(asked.real[:, -1].all())
        return self._read[1]

    def _apart(self, ways: Ways, asked: Asked) -> Tensor:
        """A run without a cache."""
        if ways.mixer is not None:
            asked = noted(ways.mixer, asked, ways.parts, ways.number)
        at, now = asked.alone()
        return self._many(ways, asked, asked.k, asked.v, at, now)

    def _many(self, ways: Ways, asked: Asked, k: Tensor, v: Tensor, at: Tensor, now: Tensor) -> Tensor:
        s = ways.train if ways.train and self.training else ways.prefill
        a, s = asked, None if self.dense else s
        if ways.mixer is not None:
            return mixed(ways.mixer, a, ways.parts, ways.number, (k, v, at), now, _before(a.real), self.owed)
        if s is not None and a.mask is None and a.causal and _alike(at):
            own, sight = self.own.next(ways.name, s.method), self.own.sight(ways.name, s.method, at)
            got = sparse(own, s.budget, a.q, k, v, at, now, a.scale, a.window, a.cap, sight)
            return self.told(got, a, self._corrected(s, got, a, k, v, at, now))
        plain = not (a.cap or a.window) and a.sinks is None and a.mask is None
        if plain and a.q.shape[2] == k.shape[2] and bool((now >= 0).all()):
            return nn.functional.scaled_dot_product_attention(
                a.q, k, v, is_causal=a.causal and a.q.shape[2] > 1, scale=a.scale, enable_gqa=a.q.shape[1] > k.shape[1]
            )
        return self.told(dense(a.q, k, v, at, now, a.scale, a.window, a.cap, a.mask, a.causal), a)

    @staticmethod
    def _corrected(
        s: Step, got: tuple[Tensor, Tensor], a: Asked, k: Tensor, v: Tensor, at: Tensor, now: Tensor
    ) -> tuple[Tensor, Tensor]:
        """With what the step's corrector makes of it, which has some queries read all."""

        def exact(index: Tensor) -> tuple[Tensor, Tensor]:
            q = a.q.gather(2, index[:, None, :, None].expand(-1, a.q.shape[1], -1, a.q.shape[3]))
            return dense(q, k, v, at, now.gather(1, index), a.scale, a.window, a.cap)

        for c in s.correctors:
            got = corrected(c, got, exact, (now < 0).sum(-1))
        return got

    def _few(self, memory: Remembered, asked: Asked, now: Tensor) -> Tensor:
        a, store = asked, memory.store
        s = None if self.dense else memory.ways.decode
        if s is not None and a.q.shape[2] == 1 and memory.saves:
            size = s.method.block
            table = self._pages(memory, s, a.q)
            got = self._read_pages(
                store, a, now, table, max(1, store.page // size), self.own.of(memory.ways.name, s.method)
            )
            whole = partial(self._read_pages, store, a, now, store.table)
            return self.told(got, a, memory.corrected(s.correctors, got, whole))
        return self.told(self._read_pages(store, a, now, store.table), a)

    @staticmethod
    def _read_pages(
        store: Store, a: Asked, now: Tensor, table: Tensor, parts: int = 1, pattern: Pattern | None = None
    ) -> tuple[Tensor, Tensor]:
        answers = []
        for r in store.readings(table, parts):  # each where its keys are
            q, last = (t.to(r.k.device) for t in (a.q, now))
            bias = weights_of(pattern, q, r.k, r.at, r.table, last) if pattern and pattern.weighs else None
            found = attend_pages(q, *r, last, a.scale, a.window, a.cap, bias)
            answers.append(tuple(t.to(a.q.device) for t in found))
        return merged(answers)

    def _pages(self, memory: Remembered, s: Step, q: Tensor) -> Tensor:
        """The pages, or parts of pages, that the pattern chooses to read; the newest is always read."""
        store, size = memory.store, s.method.block
        memory.steps += 1
        if memory.always_looks and size == store.page:
            return self._blocks(memory, s, q, store.table)
        blocks = -(-store.table.shape[-1] * store.page // size)
        names = torch.arange(blocks, dtype=torch.int32, device=q.device).expand(*store.end.shape, -1)
        return pages_of(self._chosen(memory, s, q, names), store.table, size, store.page)

    def _chosen(self, memory: Remembered, s: Step, q: Tensor, names: Tensor) -> Tensor:
        """The blocks that the pattern chooses, or chose last where it does not look."""
        longest, heads = memory.store.longest, memory.store.length.shape
        again, then = self.chosen or (None, 0)
        looks = s.method.looks(memory.ways.number, memory.steps - 1)
        if looks or again is None or again.shape[:2] != heads or then > longest:
            self.chosen = self._blocks(memory, s, q, names), longest
            return self.chosen[0]
        own = newest_block(memory.store.end, s.method.block)[..., None].int()
        return torch.cat([again.masked_fill(again >= own, -1), own], -1)

    def _blocks(self, memory: Remembered, s: Step, q: Tensor, names: Tensor) -> Tensor:
        store, pattern = memory.store, self.own.of(memory.ways.name, s.method)
        if (s.method in memory.heard) and (there := self.own.sight(memory.ways.name, s.method, store.read()[2])):
            heads = there[1].shape[1]
            return pick(pattern, s.budget, *there, store.length[:, :heads]).expand(-1, store.length.shape[1], -1)
        if not isinstance(pattern, ByScore):
            return pick(pattern, s.budget, q, store.read()[0].to(q.dtype), store.length)
        return best_blocks(pattern, s.budget, q, memory.digested(pattern, q.dtype), store.end, names)

    def _forget(self, memory: Remembered, asked: Asked, now: Tensor, new: int) -> None:
        forget, store = memory.ways.forget, memory.store
        if forget.counts_received:
            k, _, at = store.read()
            told = store.read("received")[3] if "received" in store.beside else 0.0
            may = allowed_slots(at, now, asked.window, asked.mask, asked.causal)
            store.put("received", told + received(asked.q, k, may, asked.scale, asked.cap))
        if self.asks:
            if forget.evictor.chunk:
                k, _, at = store.read()
                may = allowed_slots(at, now, asked.window, asked.mask, asked.causal)
                before = store.read("again")[3] if "again" in store.beside else 0.0
                store.put("again", greatest(asked.q, k, may, asked.scale, asked.cap).maximum(torch.as_tensor(before)))
            return
        if self.waits is not None:
            self.waits.append((memory, asked.scale))
            return
        if new == 1 and memory.since < self.every:
            return
        memory.forget(asked.scale)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Nothing is forgotten before this is left."""
        self.waits = []
        try:
            yield
            for m, scale in self.waits:
                m.forget(scale)
                m.store.settle()
        finally:
            self.waits = None

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """What the model says now, it says again: by all there is, and what it reads is noted."""
        self.dense = self.asks = True
        try:
            yield
        finally:
            self.dense = self.asks = False

    def told(self, read: tuple[Tensor, Tensor], asked: Asked, corrected: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """What is said; a meter looks at the answer before sinks take their part, and at what was read for it."""
        answer = corrected or read
        self.last = answer[0], read[1]
        return _sunk(answer, asked)

    def learnt(self) -> dict[str, dict[str, Tensor]]:
        """The parts of each module's mixer as they are now: `write_parts` makes of them what a mixer's `file` names."""
        return {
            w.name: {part: t.detach().clone() for part, t in w.parts.items()}
            for w in self.ways.values()
            if len(w.parts)
        }

    def changes(self) -> list[Change]:
        """A line for each module that has remembered something: the share of its tokens, and the bytes, that it keeps."""
        out = []
        for m in self.made:
            if not m.seen:
                continue
            heads, each = m.store.length.shape[1], m.store.k.shape[-1] + m.store.v.shape[-1]
            whole = int(m.real.sum()) * heads
            step = f"cache/{m.ways.forget.evictor.name.partition('/')[2]}" if m.ways.forget else "attention"
            amount = str(m.ways.forget.budget) if m.ways.forget else "100%"
            before = whole * each * m.store.k.element_size()
            layout = f"pages of {m.ways.form.name.partition('/')[2]}" if m.ways.form else "pages"
            kept = int(m.store.length.sum()) / whole
            out.append(Change(m.ways.name, step, amount, kept, before, m.store.bytes, layout))
        return out


def _before(real: Tensor | None) -> Tensor | None:
    """How much padding there is before each row's first token."""
    return None if real is None else (real.bool().cumsum(-1) == 0).sum(-1)


def _alike(at: Tensor) -> bool:
    """Whether all heads of a row hold as many tokens: none has forgotten more."""
    count = (at >= 0).sum(-1)
    return bool((count == count[:, :1]).all())


def _sunk(answer: tuple[Tensor, Tensor], asked: Asked) -> Tensor:
    """With a sink, part of the softmax goes nowhere: exp(lse) / (exp(lse) + exp(sink)) is left."""
    out, lse = answer
    if asked.sinks is None:
        return out
    return out * (lse - asked.sinks[None, :, None].float()).sigmoid()[..., None].to(out.dtype)


@contextlib.contextmanager
def attending_to(
    model: nn.Module, steps: Recipe, every: int = 64, meter: Meter | None = None
) -> Iterator[Attending | Metered]:
    """Do the steps while this is open; watched, if there is a meter."""
    if every < 1:
        raise ValueError(f"every={every}: tokens are forgotten after at least 1 new one")
    engine = Attending(ways_of(model, steps), every)
    watched = engine if meter is None else Metered(engine, meter)
    parts = {m: w.parts for m, w in engine.ways.items() if len(w.parts)}
    with attended(model, watched), parted(parts), refreshed(model, engine, refresher_of(engine.ways)):
        with reread(model, engine, rereader_of(engine.ways), FEW):
            yield watched
