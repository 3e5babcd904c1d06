"""How scores become an output: the other noun of attention, beside which blocks are read."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, Int32, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fewer.core import Budget, Method
from fewer.kernels._scores import scores

from ._act import CHUNK, Places, allowed_slots
from ._learnt import Shape
from ._protocol import Key, Query

__all__ = ["ByRow", "May", "Mixer", "Out", "Parts", "Reading", "RowScore", "Value", "by_rows", "in_chunks", "laid"]

Parts = Mapping[str, Tensor]
Value = Float[Tensor, "batch kv_heads keys out"]
Out = Float[Tensor, "batch heads queries out"]
RowScore = Float[Tensor, "*lead queries keys"]
May = Bool[Tensor, "*_lead queries keys"]
Turn = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Reading:
    """What the queries of one layer may read, and with what.

    Slot n of a key-value head holds the token at place `at` of its text (-1: nothing; ascending); queries stand at `now` (-1:
    padding), and head h reads key-value head h // (heads / kv_heads). A query reads what is not later than itself and, with a
    `window`, among the last so many; or, if there is one, what `mask` says by the tokens' places. A score is
    scale q.k or, with a `cap`, cap tanh(scale q.k / cap). `sinks`: a score of each head that takes part like one more key
    without a value. `parts` are the mixer's own tensors in this layer, `x` the hidden states of the queries' tokens, `note`
    what the mixer had remembered of each token beside its key; `turn` rotates vectors of heads at the queries' places as the
    model rotates its queries and keys, if it does.
    """

    q: Query
    k: Key
    v: Value
    at: Places
    now: Int32[Tensor, "batch queries"]
    scale: float
    window: int = 0
    cap: float = 0.0
    mask: Bool[Tensor, "batch _heads queries tokens"] | None = None
    causal: bool = True
    sinks: Float[Tensor, " heads"] | None = None
    parts: Parts = field(default_factory=dict)
    x: Float[Tensor, "batch queries hidden"] | None = None
    note: Float[Tensor, "batch kv_heads keys wide"] | None = None
    turn: Turn | None = None
    layer: int = 0

    @classmethod
    def of(cls, q: Query, k: Key, v: Value, parts: Parts | None = None, scale: float | None = None) -> "Reading":
        """Tokens 0, 1, ...; the last of the queries stands at the last of them."""
        batch, heads, n, dim = k.shape
        at = torch.arange(n, dtype=torch.int32, device=k.device).expand(batch, heads, n)
        now = at[:, 0, n - q.shape[2] :]
        return cls(q, k, v, at, now, dim**-0.5 if scale is None else scale, parts=parts or {})

    def chunks(self) -> Iterator[slice]:
        """The queries, some at a time: their scores are what is in memory."""
        yield from (slice(first, first + CHUNK) for first in range(0, self.q.shape[2], CHUNK))

    def grouped(self, x: Shaped[Tensor, "batch heads *rest"]) -> Shaped[Tensor, "batch kv_heads group *rest"]:
        """What there is of each head, by the key-value head that it reads."""
        return x.unflatten(1, (self.k.shape[1], -1))

    def scores(self, some: slice = slice(None)) -> Float[Tensor, "batch kv_heads group queries keys"]:
        """The scores of some queries, in float32 at least."""
        wide = torch.promote_types(self.q.dtype, torch.float32)
        q, k = self.grouped(self.q[:, :, some]).to(wide), self.k.to(wide)[:, :, None]
        return scores(q, k, self.scale, self.cap)

    def may(self, some: slice = slice(None)) -> Bool[Tensor, "batch _kv _group queries keys"]:
        """Which of them may be read."""
        mask = None if self.mask is None else self.mask[:, :, some]
        may = allowed_slots(self.at, self.now[:, some], self.window, mask, self.causal)
        return self.grouped(may) if may.shape[1] > self.k.shape[1] else may[:, :, None]

    def counts(self, budget: Budget, some: slice = slice(None)) -> Int[Tensor, "batch one two queries three"]:
        """How many keys a budget lets each of them read: of a share, that share of the text up to itself; at least one."""
        there = (self.now[:, None, None, some, None] + 1).long().clamp(min=1)
        if isinstance(budget.keep, int):
            return there.clamp(max=max(1, budget.keep))
        return (there * budget.keep.numerator // budget.keep.denominator).clamp(min=1)

    def apart(self, some: slice = slice(None)) -> Float[Tensor, "batch kv_heads one queries keys"]:
        """How many tokens lie between a query and what it reads."""
        return (self.now[:, None, None, some, None] - self.at[:, :, None, None]).to(torch.float32)


class Mixer(Method):
    """Says what a query makes of what it may read. It may have tensors of its own in each layer, that can be learnt.

    A function of each query and of what lies before it, so that a text gives the same at once, in chunks and word by word.
    """

    file: str = ""  # what was learnt of its parts, by module
    chooses: ClassVar[bool] = (
        False  # whether a budget says how much is read; else it is all that weights are not zero for
    )
    sinks: ClassVar[bool] = True  # whether it knows what a sink is

    @property
    def files(self) -> tuple[Path, ...]:
        """Where it is kept: a result depends on what is in there."""
        return (Path(self.file),) if self.file else ()

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        """Its tensors in an attention module before the first step, in float32; most have none.

        ValueError: a module that it cannot be done to.
        """
        return {}

    def note(self, r: Reading) -> Float[Tensor, "batch kv_heads keys wide"] | None:
        """What must be remembered of each token beside its key; `r` holds the new tokens alone, as queries and as keys."""
        return None

    def penalty(self, r: Reading) -> Float[Tensor, ""] | None:
        """What its parts learn from beside the task, if anything: a loss of one layer."""
        return None

    @abstractmethod
    def mix(self, r: Reading, budget: Budget) -> Out:
        """What each query makes of it, differentiable; zero for one that may read nothing."""


class ByRow(Mixer):
    """The weights of a query follow from its own scores; the output is their sum over the values."""

    @abstractmethod
    def weigh(self, score: RowScore, may: May, parts: Parts) -> RowScore:
        """The weights. What may not be read scores -inf, but where there is nothing at all; its weight will be zero.

        `score` is `[batch, kv_heads, group, queries, keys]`, or without what is in front where there are no `parts`.
        """

    def mix(self, r: Reading, budget: Budget) -> Out:
        return by_rows(r, lambda score, may, some: self.weigh(score, may, r.parts)).to(r.q.dtype)


def by_rows(r: Reading, weigh: Callable[[RowScore, May, slice], RowScore]) -> Out:
    """The sum of the values by weights of each query's scores, in float32 at least; `[queries, keys]` is there for some queries
    at a time only.

    With gradients too: what the chunks held is made again on the way back.
    """
    values = r.v.to(torch.promote_types(r.v.dtype, torch.float32))[:, :, None]

    def some_of(some: slice) -> Tensor:
        score, may = r.scores(some), r.may(some)
        keys = score.shape[-1]
        if r.sinks is not None:
            sink = r.grouped(r.sinks[None, :, None, None]).to(score.dtype)
            score = torch.cat([score, sink.expand(*score.shape[:-1], 1)], -1)
            may = torch.nn.functional.pad(may, (0, 1), value=True)
        score = torch.where(may.any(-1, keepdim=True), score.masked_fill(~may, -torch.inf), 0.0)
        weight = weigh(score, may, some).masked_fill(~may, 0.0)
        return (weight[..., :keys] @ values).flatten(1, 2)

    return in_chunks(r, some_of)


def laid(r: Reading, who: Mixer) -> Reading:
    """The same with the token of place n in slot n, for who thinks in regions of the text.

    ValueError: a mask of who may read whom, or a text that is read both ways.
    """
    if r.mask is not None or not r.causal:
        raise ValueError(f"{who.name} reads a causal text; it cannot follow a mask of its own, or look ahead")
    n = max(1, int(r.at.max()) + 1) if r.at.numel() else 1
    index = torch.where(r.at >= 0, r.at, n).long()  # what is empty goes behind the last, and is cut off

    def put(x: Tensor) -> Tensor:
        out = x.new_zeros(*x.shape[:2], n + 1, x.shape[-1])
        return out.scatter(2, index[..., None].expand_as(x), x)[:, :, :n]

    at = torch.full((*r.at.shape[:2], n + 1), -1, dtype=r.at.dtype, device=r.at.device).scatter(2, index, r.at)[..., :n]
    return replace(r, k=put(r.k), v=put(r.v), at=at, note=None if r.note is None else put(r.note))


def in_chunks(r: Reading, part: Callable[[slice], Tensor]) -> Tensor:
    """`part` of some queries after the other; what is in memory meanwhile is made again on the way back."""
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (r.q, r.k, r.v, *r.parts.values()))
    again = learns and r.q.shape[2] > CHUNK
    return torch.cat([checkpoint(part, s, use_reentrant=False) if again else part(s) for s in r.chunks()], 2)
