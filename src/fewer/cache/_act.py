"""How an evictor is done to a store: asked with what there is, and what it lets go is given back."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from fewer.core import Budget
from fewer.kernels._scores import scores

from ._protocol import Allocator, ByScore, Cached, Corrector, Evictor, Past, Recent, Rope, Score

if TYPE_CHECKING:
    from ._store import Store


@dataclass(frozen=True)
class Forgetting:
    """What is done to one layer's store: who says what stays, how much, who divides it, who repairs."""

    evictor: Evictor
    budget: Budget
    turn: int  # of the modules that the step acts on, which
    turns: int
    allocator: Allocator | None = None
    correctors: tuple[Corrector, ...] = ()
    project: Float[Tensor, "heads dim hidden"] | None = None  # the output projection, by heads
    layer: int | None = None  # of the model

    @property
    def counts_received(self) -> bool:
        """Whether the attention that each slot gets must be added up."""
        return any(need.__name__ == "Received" for need in self.evictor.needs)

    def notes(
        self,
        k: Cached,
        v: Cached,
        q: Recent,
        now: Int32[Tensor, "batch new"],
        scale: float,
        rope: Rope | None,
        x: Tensor,
    ) -> tuple[dict[str, Score], Recent]:
        """What is noted of new tokens, by its name beside the slots, and their queries as attention should see them."""
        if not self.evictor.notes:
            return {}, q
        at, seen = now[:, None].expand(-1, k.shape[1], -1), (now >= 0).sum(-1)
        new = Past(k, v, at, q, now, seen, scale, rope, None, self.project, self.layer, x=x)
        return {"noted": self.evictor.note(new)}, self.evictor.clean(new)

    def __call__(
        self,
        store: "Store",
        q: Recent,
        now: Int32[Tensor, "batch window"],
        seen: Int[Tensor, " batch"],
        scale: float,
        rope: Rope | None = None,
    ) -> None:
        """Bring the store to the budget; nothing happens where it is met already."""
        beside = (
            ["received"] * self.counts_received + ["noted"] * self.evictor.notes + ["again"] * ("again" in store.beside)
        )
        k, v, at, *more = store.read(*beside)
        told = dict(zip(beside, more, strict=True))
        if self.counts_received:
            told["received"] = told["received"] / (int(now.max()) + 1 - at).clamp(min=1)
        past = Past(k, v, at, q, now, seen, scale, rope, project=self.project, layer=self.layer, **told)
        counts = past.counts(self.budget)
        if self.allocator is not None:
            score = self.evictor.score(past).masked_fill(~past.real, -torch.inf)  # type: ignore[attr-defined]
            counts = self.allocator.allocate(score, counts, self.turn, self.turns)
        if bool((past.real.sum(-1) <= counts).all()):
            return
        keep = self.evictor.evict(past, counts)
        if not self.correctors:
            return store.keep(keep)
        for corrector in self.correctors:
            past = corrector.correct(past, keep)
        store.keep(keep, past.k, past.v, past.at)

    def check(self) -> None:
        """ValueError for what cannot be done."""
        if not self.budget.plain:
            raise ValueError(
                f"a cache keeps a share or a number of tokens in each head, not '{self.budget}'; write '25%', or '25% by ada'"
            )
        if getattr(self.evictor, "file", None) == "":
            raise ValueError(f"{self.evictor.name} has learnt nothing: name its file, '{self.evictor.name}(file=...)'")
        if self.allocator is not None and not isinstance(self.evictor, ByScore):
            raise ValueError(f"{self.allocator.name} divides by scores, and {self.evictor.name} gives none")


def greatest(
    q: Float[Tensor, "batch heads new dim"], k: Cached, may: Tensor, scale: float, cap: float = 0.0, chunk: int = 128
) -> Score:
    """The greatest attention that each slot gets from any of these queries and heads of its group; `may` as in `received`."""
    most = torch.zeros(k.shape[:3], device=k.device)
    grouped, keys = q.unflatten(1, (k.shape[1], -1)).float(), k.float()[:, :, None]
    for first in range(0, q.shape[2], chunk):
        some = slice(first, first + chunk)
        score = scores(grouped[:, :, :, some], keys, scale, cap).masked_fill(~may[:, :, None, some], -torch.inf)
        most = torch.maximum(most, score.softmax(-1).nan_to_num(0.0).amax((2, 3)))
    return most


def received(
    q: Float[Tensor, "batch heads new dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    may: Tensor,
    scale: float,
    cap: float = 0.0,
    chunk: int = 128,
) -> Score:
    """The attention that each slot gets from these queries: summed over them, the mean over the heads of its group.

    `may` is `[batch, 1 or kv_heads, new, keys]`.
    """
    total = torch.zeros(k.shape[:3], device=k.device)
    grouped, keys = q.unflatten(1, (k.shape[1], -1)).float(), k.float()[:, :, None]
    for first in range(0, q.shape[2], chunk):
        some = slice(first, first + chunk)
        score = scores(grouped[:, :, :, some], keys, scale, cap)
        weight = score.masked_fill(~may[:, :, None, some], -torch.inf).softmax(-1).nan_to_num(0.0)
        total += weight.sum(3).mean(2)
    return total
