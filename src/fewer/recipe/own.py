"""What the patterns of each attention module have learnt of it: from a file, from text, or from the first that it reads."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fewer.attention import Pattern
from fewer.measure.quality import at_rest, device_of
from fewer.models.cache_layer import Asked

if TYPE_CHECKING:
    from .remembered import Remembered
    from .ways import Ways

FEW, ENOUGH = 16, 8192  # tokens that one learns from, at least and at most


Sight = tuple[Tensor, Tensor]  # what asks, of the new tokens; what is asked for, of all by their places


@dataclass(eq=False)
class Own:
    """The pattern of each module with what it has learnt there: of a step's method, and a module's name."""

    made: dict[tuple[str, Pattern], Pattern] = field(default_factory=dict)
    times: dict[tuple[str, Pattern], int] = field(default_factory=dict)
    seen: dict[tuple[str, Pattern], Sight] = field(default_factory=dict)  # of those that hear, as a module last asked

    def of(self, module: str, m: Pattern) -> Pattern:
        """The method as it is at this module."""
        if (found := self.made.get((module, m))) is None:
            found = self.made[module, m] = m.at(module)
        return found

    def learns(self, ways: Iterable["Ways"]) -> bool:
        """Whether a pattern of these would learn from text, and has not."""
        return any(learns(self.of(w.name, m)) for w in ways for m in w.patterns)

    def next(self, module: str, m: Pattern) -> Pattern:
        """The same for many queries at once: one that draws, draws anew each time."""
        own = self.of(module, m)
        if type(own).anew is Pattern.anew:
            return own
        self.times[module, m] = self.times.get((module, m), -1) + 1
        return own.anew(self.times[module, m])

    def hear(self, module: str, some: Iterable[Pattern], asked: Asked) -> None:
        """Those that have not learnt yet, learn from what is asked; tokens before or of which nothing is known, do not count."""
        learning = [m for m in some if learns(self.of(module, m))]
        if not learning or not asked.causal or asked.mask is not None or asked.q.shape[2] <= FEW:
            return
        q, k = (_real(x.detach(), asked.real) for x in (asked.q, asked.k))
        for m in learning if q.shape[2] > FEW else ():
            self.made[module, m] = self.made[module, m].fit(q, k)

    def listen(self, module: str, some: Iterable[Pattern], asked: Asked, memory: "Remembered | None") -> None:
        """What those that hear make of the hidden states of the new tokens, which are not in the memory yet."""
        for m in some:
            own = self.of(module, m)
            if not (own.hears and getattr(own, "parts", None)):
                continue
            before = 0 if memory is None else memory.seen
            now = torch.arange(before, before + asked.q.shape[2], device=asked.q.device).expand(len(asked.q), -1)
            q, k = own.sees(asked.q, asked.k, asked.x, now)
            if memory is not None:
                k = memory.heard[m] = torch.cat([memory.heard[m], k], 2) if m in memory.heard else k
            self.seen[module, m] = q, k

    def sight(self, module: str, m: Pattern, at: Tensor) -> Sight | None:
        """What `m` asks with and for instead of queries and keys, for slots that hold the tokens at these places, if it hears.

        Heads are those of the keys, or one where all hold the same tokens.
        """
        if (seen := self.seen.get((module, m))) is None:
            return None
        q, k = seen
        if bool((at == at[:, :1]).all()):
            at = at[:, :1]
        where = at.long().clamp(min=0)[..., None].expand(-1, -1, -1, k.shape[-1])
        return q.repeat(1, at.shape[1], 1, 1), k.expand(-1, at.shape[1], -1, -1).gather(2, where)


def learns(m: Pattern) -> bool:
    """Whether it would learn from queries and keys, and has not."""
    return bool(m.fits) and not getattr(m, m.fits)


def _real(x: Tensor, real: Tensor | None) -> Tensor:
    """Without padding, row behind row; as many tokens as are enough."""
    rows = x[:, :, : max(FEW + 1, ENOUGH // len(x))]
    if real is None or bool(real.all()):
        return rows
    there = real[:, -x.shape[2] :][:, : rows.shape[2]].bool()
    return rows.transpose(1, 2)[there].transpose(0, 1)[None]


def shown(model: nn.Module, data: Tensor) -> None:
    """Run a model on some of the data, so that those of its patterns that learn see it."""
    windows = max(1, ENOUGH // data.shape[1])
    with at_rest(model):
        model(input_ids=data[:windows].to(device_of(model)), use_cache=False)
