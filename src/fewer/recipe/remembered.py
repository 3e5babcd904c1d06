"""What one attention module remembers between the tokens that a model is given."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewer.attention import ByScore, Corrector, Digest, Pattern, at_most
from fewer.attention._act import Digests, newest_block
from fewer.cache._store import Store
from fewer.models.cache_layer import Asked, Memory

from .ways import Ways

if TYPE_CHECKING:
    from .attending import Attending


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
    digested_to: Tensor | None = None  # full blocks of each head that are in the digests; on the CPU
    folds: bool = False  # each new key is taken into its block at once
    clock: Tensor | None = None  # where the newest token stands, on the device
    steps: int = 0  # of decoding
    heard: dict[Pattern, Tensor] = field(default_factory=dict)  # by patterns that look at hidden states: of each place
    exact: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = (
        None  # the last that read all, and what it had read before
    )
    since_exact: int = 0  # steps
    said: Tensor | None = (
        None  # the tokens decoded since all was read again, and where they stand: at the first module, if somebody asks
    )
    stood: Tensor | None = None
    recording: bool = False  # what is done for this token is done alike for later ones

    def crop(self, tokens: int) -> None:
        if self.store.k is None:
            return
        self.seen -= tokens
        self.real = (self.real - tokens).clamp(min=0)
        if self.q is not None:
            self.q, self.now = self.q[:, :, : -tokens or None], self.now[:, : -tokens or None]
        if self.said is not None:
            self.said, self.stood = self.said[:, : -tokens or None], self.stood[:, : -tokens or None]
        self.store.crop(self.seen)
        self.heard = {m: k[:, :, : self.seen] for m, k in self.heard.items()}
        self.digests = self.clock = self.exact = None

    def pick(self, rows: Tensor) -> None:
        rows = rows.to(self.real.device)
        self.store.pick(rows)
        self.rows, self.real = len(rows), self.real[rows]
        self.heard = {m: k[rows] for m, k in self.heard.items()}
        if self.q is not None:
            self.q, self.now = self.q[rows], self.now[rows]
        if self.said is not None:
            self.said, self.stood = self.said[rows], self.stood[rows]
        self.digests = self.exact = None

    def take(self, asked: Asked) -> tuple[Tensor, Asked]:
        """Put the new tokens in; where each of them stands, -1 for padding, and with what queries attention goes on."""
        batch, _, new, _ = asked.q.shape
        now = asked.places(self.seen)
        beside, asked = self._noted(asked, now)
        self.store.append(asked.k, asked.v, now, beside)
        self.rows, self.seen, self.since = batch, self.seen + new, self.since + new
        real = (now >= 0).sum(-1)
        self.real = real if self.real is None else self.real.add_(real)
        if self.clock is not None:
            self.clock.fill_(self.seen - 1)
        if self.folds:  # what is not full yet is not known of the new ones
            self.digests, self.folds = None, False
        self._ask(asked.q, now)
        return now, asked

    def step(self, asked: Asked) -> tuple[Tensor, Asked]:
        """The same for one new token of every row, none of them padding. Nothing waits for the device while the store has room."""
        if self.clock is None:
            self.clock = torch.full((1,), self.seen - 1, dtype=torch.int32, device=asked.q.device)
        now = self.clock.add_(1).expand(len(asked.q), 1)
        beside, asked = self._noted(asked, now)
        self.store.step(asked.k, asked.v, now, beside)
        self._fold(asked.k)
        self.real.add_(1)
        self.seen, self.since = self.seen + 1, self.since + 1
        self._ask(asked.q, now)
        return now, asked

    def forget(self, scale: float) -> None:
        """Let the evictor bring what is there to its budget."""
        self.ways.forget(self.store, self.q, self.now, self.real, scale, self.ways.rope)
        self.since, self.digests = 0, None

    def _noted(self, asked: Asked, now: Tensor) -> tuple[dict[str, Tensor], Asked]:
        if (forget := self.ways.forget) is None or not forget.evictor.notes:
            return {}, asked
        beside, q = forget.notes(asked.k, asked.v, asked.q, now, asked.scale, self.ways.rope, asked.x)
        return beside, replace(asked, q=q)

    def stepped(self) -> None:
        """What `step` notes on the CPU, when a recording has done the rest."""
        self.seen, self.since, self.steps = self.seen + 1, self.since + 1, self.steps + 1
        self.store.stepped()
        if self.digests is not None:
            self.digested_to = self.store.length // self.digests.pattern.block

    def corrected(
        self, correctors: tuple[Corrector, ...], got: tuple[Tensor, Tensor], whole: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """What a step of decoding got, corrected: each `every`-th reads all there is."""
        for c in correctors:
            self.since_exact += 1
            if self.exact is None or self.since_exact >= c.every:
                self.exact, self.since_exact = (got, whole()), 0
                return self.exact[1]
            got = c.correct(got, *self.exact)
        return got

    @property
    def saves(self) -> bool:
        """Whether the pattern that decodes leaves anything out yet."""
        return self.saves_at(self.store.longest)

    def saves_at(self, longest: int) -> bool:
        """Whether it will, once the longest head holds so many."""
        s = self.ways.decode
        blocks = -(-longest // s.method.block)
        return longest > self.ways.beyond and (s.method.sparing or at_most(blocks, s.budget, s.method) < blocks)

    @property
    def always_looks(self) -> bool:
        """Whether the pattern that decodes scores blocks by their keys, at every layer and step."""
        m = self.ways.decode.method
        return isinstance(m, ByScore) and not m.hears and type(m).looks is Pattern.looks

    @property
    def plain_step(self) -> bool:
        """Whether the next token asks nothing of the host."""
        forget, decode = self.ways.forget, self.ways.decode
        if self.ways.mixer is not None or self.ways.form is not None:
            return False
        if decode is not None and (not self.always_looks or decode.method.weighs or decode.correctors):
            return False
        if self.ways.refresher is not None or (forget is not None and forget.evictor.notes):
            return False
        if forget is None:
            return True
        looks_back = self.q is not None and 0 < forget.evictor.window == self.q.shape[2]
        return looks_back and not forget.counts_received and self.since + 1 < self.engine.every

    def digested(self, pattern: ByScore, dtype: torch.dtype) -> Digest:
        """What the pattern remembers of the blocks, the newest one full taken in."""
        store, size = self.store, pattern.block
        full = store.length // size
        if self.digests is None or self.digests.pattern is not pattern:
            self.digests, self.folds = Digests(pattern), False
            self.digests.begin(self._keys().to(dtype), self._blocks(size))
        elif self.recording and not self.folds:
            self._digest(newest_block(store.end, size).clamp(min=0), dtype)
        elif not self.folds:
            self.digests.grow(self._blocks(size))
            while (self.digested_to < full).any():
                self._digest(self.digested_to.minimum(full - 1).clamp(min=0).to(store.end.device), dtype)
                self.digested_to = self.digested_to + (self.digested_to < full)
        self.digested_to = full
        return tuple(self.digests.held)

    def _keys(self) -> Tensor:
        """All there are; in the place of those that shorter heads lack, their newest one."""
        k, newest = self.store.read()[0], (self.store.end - 1).clamp(min=0)[..., None]
        there = torch.arange(k.shape[2], device=k.device).minimum(newest)
        return k.gather(2, there[..., None].expand_as(k))

    def _blocks(self, size: int) -> int:
        """Of this size, in as many pages as the table names."""
        return -(-self.store.table.shape[-1] * self.store.page // size)

    def _fold(self, k: Tensor) -> None:
        """Take a new key into what is remembered of its block, if the pattern can."""
        d = self.digests
        if d is not None:
            d.grow(self._blocks(d.pattern.block))
            kind = d.held[0].dtype if d.held[0].is_floating_point() else k.dtype  # codes are no kind of key
            self.folds = d.pattern.fold(tuple(d.held), k.to(kind), self.store.end)

    def _digest(self, block: Tensor, dtype: torch.dtype) -> None:
        self.digests.put(block, self.store.block(block, self.digests.pattern.block).to(dtype))

    def _ask(self, q: Tensor, now: Tensor) -> None:
        """Keep as many of the latest queries as the evictor looks at, and what it counts."""
        if self.ways.forget is None:
            return
        some, old = self.ways.forget.evictor.window or self.since, self.q
        if old is not None:
            q, now = torch.cat([old, q], 2), torch.cat([self.now, now], 1)
        q, now = q[:, :, -some:], now[:, -some:]
        if old is not None and old.shape == q.shape:
            old.copy_(q)  # where they lay
            self.now.copy_(now)
        else:
            self.q, self.now = q.clone(), now.clone()
