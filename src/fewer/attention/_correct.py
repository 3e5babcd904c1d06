"""How what was read is corrected: some queries read all there is, and weights stand by keys that were drawn."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Int32, Shaped
from torch import Tensor

from ._protocol import Answer, Corrector, Pattern, Query


def corrected(
    c: Corrector, got: Answer, exact: Callable[[Int[Tensor, "batch some"]], Answer], first: Int[Tensor, " batch"]
) -> Answer:
    """The answers to many queries, of which each row's `first` is the first that is no padding.

    `exact(index)` answers some of them, as many of each row, by all there is: the first, and each `every`-th after it.
    """
    queries = got[0].shape[2]
    place = torch.arange(queries, device=first.device) - first[:, None]
    turn = place.clamp(min=0) // c.every
    index = first[:, None] + torch.arange(int(turn.max()) + 1, device=first.device) * c.every
    index = index.clamp(max=queries - 1)
    full, near = exact(index), _rows(got, index)
    full, near = _rows(full, turn), _rows(near, turn)
    is_exact = ((place >= 0) & (place % c.every == 0))[:, None]
    out, lse = c.correct(got, near, full)
    out, lse = torch.where(is_exact[..., None], full[0], out), torch.where(is_exact, full[1], lse)
    padding = (place < 0)[:, None]
    return torch.where(padding[..., None], got[0], out), torch.where(padding, got[1], lse)


def _rows(answer: Answer, index: Int[Tensor, "batch some"]) -> tuple[Tensor, Tensor]:
    out, lse = answer
    at = index[:, None].expand(-1, out.shape[1], -1)
    return out.gather(2, at[..., None].expand(-1, -1, -1, out.shape[3])), lse.gather(2, at)


def weights_of(
    pattern: Pattern,
    q: Query,
    k: Shaped[Tensor, "pages page dim"],
    at: Int32[Tensor, "pages page"],
    table: Int32[Tensor, "batch kv_heads reads"],
    now: Int32[Tensor, "batch 1"],
) -> Float[Tensor, "batch heads slots"]:
    """The logarithm of how much each slot of the pages that a table names counts for one query; its own counts once."""
    pages = table.long().clamp(min=0)
    weight = pattern.weigh(q, k[pages].flatten(2, 3).to(q.dtype))
    own = at[pages].flatten(2) == now[:, :, None]
    return weight.masked_fill(own.repeat_interleave(q.shape[1] // own.shape[1], 1), 0.0)
