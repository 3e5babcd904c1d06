"""Steps of the axes `attention` and `cache` in a running model: what each of its attention modules reads, and remembers."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewer.attention import ByScore, allowed
from fewer.attention._act import Digests, allowed_slots, dense, pages_of, pick, pick_by_score, sparse
from fewer.cache._act import received
from fewer.cache._store import Store
from fewer.core import Change
from fewer.kernels import attend_pages
from fewer.models.attention import attended
from fewer.models.cache_layer import Asked, Engine, Memory

from .own import Own, learns
from .steps import Recipe, Step
from .ways import Ways, ways_of

FEW = 16  # new tokens that are a step of decoding
AXES = ("attention", "cache")


@dataclass(eq=False)
class Remembered(Memory):
    """What one module remembers: a store of keys and values, the latest queries, what patterns know of full blocks."""

    engine: "Attending"
    ways: Ways
    store: Store
    seen: int = 0
    rows: int = 0
    real: Tensor | None = None  # how many tokens each row has seen, padding not counted
    q: Tensor | None = None  # the latest queries
    now: Tensor | None = None
    since: int = 0  # tokens since the last that were forgotten
    digests: Digests | None = None
    steps: int = 0  # of decoding

    def crop(self, tokens: int) -> None:
        if self.store.k is None:
            return
        self.seen -= tokens
        self.real = (self.real - tokens).clamp(min=0)
        if self.q is not None:
            self.q, self.now = self.q[:, :, : -tokens or None], self.now[:, : -tokens or None]
        self.store.crop(self.seen)
        self.digests = None

    def pick(self, rows: Tensor) -> None:
        rows = rows.to(self.real.device)
        self.store.pick(rows)
        self.rows, self.real = len(rows), self.real[rows]
        if self.q is not None:
            self.q, self.now = self.q[rows], self.now[rows]
        self.digests = None

    def take(self, asked: Asked) -> Tensor:
        """Put the new tokens in; where each of them stands, -1 for padding."""
        batch, _, new, _ = asked.q.shape
        now = torch.arange(self.seen, self.seen + new, dtype=torch.int32, device=asked.q.device).expand(batch, -1)
        if asked.real is not None:
            now = now.masked_fill(~asked.real[:, -new:].bool(), -1)
        self.store.append(asked.k, asked.v, now)
        self.rows, self.seen, self.since = batch, self.seen + new, self.since + new
        real = (now >= 0).sum(-1)
        self.real = real if self.real is None else self.real + real
        self._ask(asked.q, now)
        return now

    def _ask(self, q: Tensor, now: Tensor) -> None:
        """Keep as many of the latest queries as the evictor looks at, and what it counts."""
        if self.ways.forget is None:
            return
        if self.q is not None:
            q, now = torch.cat([self.q, q], 2), torch.cat([self.now, now], 1)
        some = self.ways.forget.evictor.window or self.since
        self.q, self.now = q[:, :, -some:], now[:, -some:]


@dataclass(eq=False)
class Attending(Engine):
    """The engine of a model's attention modules: `every` is how many tokens may come, while decoding, before some are
    forgotten again."""

    ways: dict[nn.Module, Ways]
    every: int = 64
    made: list[Remembered] = field(default_factory=list)
    own: Own = field(default_factory=Own)
    chosen: Tensor | None = None  # what the last that looked, a layer or a step ago, chose to read

    def memory(self, module: nn.Module) -> Remembered:
        ways = self.ways[module]
        self.made = [m for m in self.made if m.ways is not ways] + [Remembered(self, ways, Store(ways.page))]
        return self.made[-1]

    def attend(self, module: nn.Module, asked: Asked, memory: Remembered | None) -> Tensor:
        ways, new = self.ways[module], asked.q.shape[2]
        if memory is None or memory.seen == 0:
            self.own.hear(ways.name, ways.patterns, asked)
        if memory is None:
            return self._apart(ways, asked)
        first = memory.seen == 0
        now = memory.take(asked)
        if first:
            at = now[:, None].expand(-1, asked.k.shape[1], -1)
            out = self._many(ways, asked, asked.k, asked.v, at, now)
        elif new <= FEW and asked.mask is None and asked.causal:
            out = self._few(memory, asked, now)
        else:
            k, v, at = memory.store.read()
            out = self._many(ways, asked, k.to(asked.q.dtype), v.to(asked.q.dtype), at, now)
        if ways.forget is not None:
            self._forget(memory, asked, now, new)
        return out

    def _apart(self, ways: Ways, asked: Asked) -> Tensor:
        """A run without a cache."""
        batch, _, new, _ = asked.q.shape
        keys = asked.k.shape[2]
        at = torch.arange(keys, dtype=torch.int32, device=asked.q.device).expand(batch, -1)
        if asked.real is not None:
            at = at.masked_fill(~asked.real.bool(), -1)
        now = at[:, keys - new :] if keys >= new else at.new_full((batch, new), keys)
        return self._many(ways, asked, asked.k, asked.v, at[:, None].expand(-1, asked.k.shape[1], -1), now)

    def _many(self, ways: Ways, asked: Asked, k: Tensor, v: Tensor, at: Tensor, now: Tensor) -> Tensor:
        a, s = asked, ways.prefill
        if s is not None and a.mask is None and a.causal and _alike(at):
            return _sunk(
                sparse(self.own.of(ways.name, s.method), s.budget, a.q, k, v, at, now, a.scale, a.window, a.cap), a
            )
        plain = not (a.cap or a.window) and a.sinks is None and a.mask is None
        if plain and a.q.shape[2] == k.shape[2] and bool((now >= 0).all()):
            return nn.functional.scaled_dot_product_attention(
                a.q, k, v, is_causal=a.causal and a.q.shape[2] > 1, scale=a.scale, enable_gqa=a.q.shape[1] > k.shape[1]
            )
        return _sunk(dense(a.q, k, v, at, now, a.scale, a.window, a.cap, a.mask, a.causal), a)

    def _few(self, memory: Remembered, asked: Asked, now: Tensor) -> Tensor:
        a, store, table = asked, memory.store, memory.store.table
        k, v, at = store.k, store.v, store.at
        if (s := memory.ways.decode) is not None and a.q.shape[2] == 1 and self._saves(s, store):
            keep = self._chosen(memory, s, a.q)
            if (size := s.method.block) % store.page:  # blocks of a few slots each, within a page
                parts = store.page // size
                k, v, at = (t.view(-1, size, *t.shape[2:]) for t in (k, v, at))
                inner = table[..., None] * parts + torch.arange(parts, dtype=torch.int32, device=table.device)
                table = torch.where(table[..., None] < 0, -1, inner).flatten(2)
            table = pages_of(keep, table, max(1, size // store.page))
        return _sunk(attend_pages(a.q, k, v, at, table, now, a.scale, a.window, a.cap), a)

    @staticmethod
    def _saves(s: Step, store: Store) -> bool:
        blocks = torch.tensor(-(-store.longest // s.method.block))
        return s.method.sparing or bool(allowed(blocks, s.budget, s.method) < blocks)

    def _chosen(self, memory: Remembered, s: Step, q: Tensor) -> Tensor:
        """What the pattern chooses, or chose last where it does not look; the newest block is always read."""
        looks = s.method.looks(memory.ways.number, memory.steps)
        memory.steps += 1
        there = -(-memory.store.longest // s.method.block)
        again = self.chosen
        if looks or again is None or again.shape[:2] != memory.store.length.shape or again.shape[-1] > there:
            self.chosen = self._keep(memory, s, q)
            return self.chosen
        keep = nn.functional.pad(again, (0, there - again.shape[-1]))
        last = (-(-memory.store.length // s.method.block) - 1).clamp(min=0)[..., None, None].to(keep.device)
        block = torch.arange(there, device=keep.device)
        return (keep | (block == last)) & (block <= last)

    def _keep(self, memory: Remembered, s: Step, q: Tensor) -> Tensor:
        store, pattern = memory.store, self.own.of(memory.ways.name, s.method)
        if not isinstance(pattern, ByScore):
            return pick(pattern, s.budget, q, store.read()[0].to(q.dtype), store.length)
        if memory.digests is None or memory.digests.pattern is not pattern:
            memory.digests = Digests(pattern)
        size = pattern.block

        def block_of(index: Tensor) -> Tensor:
            slot = index[..., None] * size + torch.arange(size)
            page = store.table.cpu().gather(-1, slot // store.page).long()
            return store.k.flatten(0, 1)[(page * store.page + slot % store.page).to(store.k.device)].to(q.dtype)

        digest = memory.digests.grow(store.length, lambda: store.read()[0].to(q.dtype), block_of)
        return pick_by_score(pattern, s.budget, q, digest, store.length)

    def _forget(self, memory: Remembered, asked: Asked, now: Tensor, new: int) -> None:
        forget, store = memory.ways.forget, memory.store
        if forget.counts_received:
            k, _, at = store.read()
            told = store.read("received")[3] if "received" in store.beside else 0.0
            may = allowed_slots(at, now, asked.window, asked.mask, asked.causal)
            store.put("received", told + received(asked.q, k, may, asked.scale, asked.cap))
        if new == 1 and memory.since < self.every:
            return
        forget(store, memory.q, memory.now, memory.real, asked.scale, memory.ways.rope)
        memory.since, memory.digests = 0, None

    @property
    def learns(self) -> bool:
        """Whether a pattern would learn from text, and has not."""
        return any(learns(self.own.of(w.name, m)) for w in self.ways.values() for m in w.patterns)

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
            out.append(
                Change(m.ways.name, step, amount, int(m.store.length.sum()) / whole, before, m.store.bytes, "pages")
            )
        return out


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
def attending_to(model: nn.Module, steps: Recipe, every: int = 64) -> Iterator[Attending]:
    """Do the steps while this is open."""
    if every < 1:
        raise ValueError(f"every={every}: tokens are forgotten after at least 1 new one")
    engine = Attending(ways_of(model, steps), every)
    with attended(model, engine):
        yield engine
