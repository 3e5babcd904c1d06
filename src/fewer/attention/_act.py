"""How a pattern is done: blocks for many queries at once, pages for one; and dense attention, where nothing is left out."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from fewer.core import Budget
from fewer.kernels import attend_blocks
from fewer.kernels._scores import scores, softmax_of
from fewer.layout import Blocks, to_pages

from ._protocol import ByScore, Digest, Keep, Key, Pattern, Query, choose, together

CHUNK = 256  # queries whose scores are in memory at once, where they must be written down
Answer = tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]
Places = Int32[Tensor, "batch kv_heads keys"]


def dense(
    q: Query,
    k: Key,
    v: Key,
    at: Places,
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    mask: Bool[Tensor, "batch _heads queries keys"] | None = None,
    causal: bool = True,
) -> Answer:
    """softmax(scale q.k) v over all that may be read, and the logarithm of its denominator; scores of some queries at a time."""
    group, wide = q.shape[1] // k.shape[1], torch.promote_types(q.dtype, torch.float32)
    keys, values = k.to(wide)[:, :, None], v.to(wide)[:, :, None]
    outs, ends = [], []
    for first in range(0, q.shape[2], CHUNK):
        some = slice(first, first + CHUNK)
        may = allowed_slots(at, now[:, some], window, None if mask is None else mask[:, :, some], causal)
        may = may.unflatten(1, (k.shape[1], -1)) if may.shape[1] > k.shape[1] else may[:, :, None]
        score = scores(q[:, :, some].to(wide).unflatten(1, (-1, group)), keys, scale, cap)
        out, lse = softmax_of(score, may, values)
        outs.append(out.flatten(1, 2))
        ends.append(lse.flatten(1, 2))
    return torch.cat(outs, 2).to(q.dtype), torch.cat(ends, 2)


def allowed_slots(
    at: Places,
    now: Int32[Tensor, "batch queries"],
    window: int = 0,
    mask: Bool[Tensor, "batch _heads queries tokens"] | None = None,
    causal: bool = True,
) -> Bool[Tensor, "batch _kv queries keys"]:
    """Which query may read which slot; a `mask` over all tokens says it by the place of the slot's token."""
    place, last = at[:, :, None], now[:, None, :, None]
    may = (place >= 0) & (last >= 0)
    if mask is not None:
        wide = max(mask.shape[1], at.shape[1])
        place = place.long().clamp(min=0).expand(-1, wide if wide == at.shape[1] else 1, mask.shape[2], -1)
        return may & mask.expand(-1, place.shape[1] if mask.shape[1] == 1 else -1, -1, -1).gather(-1, place)
    may = may & (place <= last) if causal else may.expand(-1, -1, now.shape[1], -1)
    return may & (place > last - window) if window else may


def sparse(
    pattern: Pattern,
    budget: Budget,
    q: Query,
    k: Key,
    v: Key,
    at: Places,
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> Answer:
    """The same over the blocks that a pattern reads. Each row of the batch is seen without its empty slots in front."""
    start = (at[:, 0] < 0).sum(-1).tolist()
    parts = [slice(None)] if len(set(start)) == 1 else [slice(b, b + 1) for b in range(len(start))]
    outs, ends = [], []
    for row in parts:
        n = start[row.start or 0]
        skip = max(0, n - (k.shape[2] - q.shape[2]))  # of the queries, those that are padding
        mine, keys = q[row, :, skip:], k[row, :, n:]
        keep = pattern.attend(mine, keys, budget)
        blocks = blocks_of(keep, pattern, (mine.shape[2], keys.shape[2]), window)
        args = v[row, :, n:], blocks, at[row, :, n:], now[row, skip:], scale, window, cap
        out, lse = attend_blocks(mine, keys, *args)
        outs.append(torch.nn.functional.pad(out, (0, 0, skip, 0)))
        ends.append(torch.nn.functional.pad(lse, (skip, 0), value=-torch.inf))
    return torch.cat(outs), torch.cat(ends)


def blocks_of(keep: Keep, pattern: Pattern, lengths: tuple[int, int], window: int = 0) -> Blocks:
    """A block is read whole where all its keys lie before all the block's queries, and no window cuts it."""
    queries, keys = lengths
    first = torch.arange(keep.shape[2], device=keep.device) * pattern.rows + keys - queries
    end = (torch.arange(keep.shape[3], device=keep.device) + 1) * pattern.block - 1
    whole = (end <= first[:, None]) & (not window)
    return Blocks.pack((whole.byte() + 1).expand(keep.shape), keep, (pattern.rows, pattern.block), lengths)


@dataclass
class Digests:
    """What a pattern remembers of the full blocks of a growing cache: made once for each."""

    pattern: ByScore
    done: Int[Tensor, "batch kv_heads"] | None = None  # full blocks, on the CPU
    held: list[Tensor] = field(default_factory=list)

    def grow(
        self,
        length: Int[Tensor, "batch kv_heads"],
        keys: Callable[[], Key],
        block_of: Callable[[Int[Tensor, "batch kv_heads"]], Key],
    ) -> Digest:
        """Take in what has become full; `block_of(index)` gives the keys of one block of each head, `keys()` all there are."""
        full, size = length // self.pattern.block, self.pattern.block
        if self.done is None:
            self.held = list(self.pattern.digest(keys()))
            self.done = full
        wide = int((-(-length // size)).max())
        if wide > self.held[0].shape[2]:
            self.held = [_room(d, wide * 9 // 8 + 8) for d in self.held]
        while (self.done < full).any():
            index = self.done.minimum(full - 1).clamp(min=0)
            for d, one in zip(self.held, self.pattern.digest(block_of(index)), strict=True):
                where = index.to(d.device)[..., None, *([None] * (one.ndim - 3))].expand_as(one)
                d.scatter_(2, where, one)
            self.done = self.done + (self.done < full)
        return tuple(d[:, :, :wide] for d in self.held)


def _room(d: Tensor, blocks: int) -> Tensor:
    out = d.new_zeros(*d.shape[:2], blocks, *d.shape[3:])
    out[:, :, : d.shape[2]] = d[:, :, :blocks]
    return out


def pick_by_score(
    pattern: ByScore, budget: Budget, q: Query, digest: Digest, length: Int[Tensor, "batch kv_heads"]
) -> Keep:
    """The blocks that one query reads of caches of different lengths, `[batch, kv_heads, 1, blocks]`."""
    length = length.to(q.device)
    last = (-(-length // pattern.block) - 1).clamp(min=0)[..., None]
    score = pattern.score(q, digest)
    own = last.repeat_interleave(score.shape[1] // last.shape[1], 1)[..., None]
    behind = torch.arange(score.shape[-1], device=q.device) >= own  # what has no digest yet: the newest is always read
    score = score.masked_fill(behind, -torch.inf).masked_fill(behind & (own == 0), 0.0)
    return choose(together(score, length.shape[1]), last, budget, pattern) & (length > 0)[..., None, None]


def pick(pattern: Pattern, budget: Budget, q: Query, k: Key, length: Int[Tensor, "batch kv_heads"]) -> Keep:
    """The same for any pattern, by asking it for each row, or each head where heads differ in length."""
    batch, kv_heads = length.shape
    cols = -(-int(length.max()) // pattern.block)
    out = torch.zeros(batch, kv_heads, 1, cols, dtype=torch.bool, device=q.device)
    group = q.shape[1] // kv_heads
    for b, lengths in enumerate(length.tolist()):
        alike = len(set(lengths)) == 1
        for some in [slice(0, kv_heads)] if alike else [slice(h, h + 1) for h in range(kv_heads)]:
            if not (n := lengths[some.start]):
                continue
            mine = q[b : b + 1, some.start * group : some.stop * group]
            keep = pattern.attend(mine, k[b : b + 1, some, :n], budget)
            heads = some.stop - some.start
            if keep.shape[1] > heads:
                keep = keep.unflatten(1, (heads, -1)).any(2)
            out[b, some, :, : keep.shape[-1]] = keep[0]
    return out


def pages_of(
    keep: Keep, table: Int32[Tensor, "batch kv_heads pages"], each: int
) -> Int32[Tensor, "batch kv_heads reads"]:
    """The pages of the chosen blocks, `each` of them a block, in order; -1 behind them."""
    keep = keep[:, :, 0].repeat_interleave(each, -1)[..., : table.shape[-1]]
    return to_pages(keep, table[..., : keep.shape[-1]])
