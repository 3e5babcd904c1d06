"""How a pattern is done: blocks for many queries at once, pages for one; and dense attention, where nothing is left out."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from fewer.core import Budget
from fewer.kernels import attend_blocks, best_pages, places
from fewer.kernels._scores import scores, softmax_of
from fewer.layout import Blocks

from ._protocol import Answer, ByScore, Digest, Keep, Key, Pattern, Query, Seen, at_most, choose, together

CHUNK = 256  # queries whose scores are in memory at once, where they must be written down
Places = Int32[Tensor, "batch kv_heads keys"]
Named = Int32[Tensor, "batch kv_heads reads"]  # blocks or pages by their numbers, -1: none


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


def merged(answers: list[Answer]) -> Answer:
    """Attention over several sets of keys that share none, as over all of them: each by the weight its logarithm gives.

    >>> one = torch.zeros(1, 1, 1)
    >>> out, lse = merged([(torch.tensor([[[[4.0]]]]), one + 1.0986), (torch.tensor([[[[0.0]]]]), one)])
    >>> print(f"{out.item():.2f} {lse.exp().item():.2f}")
    3.00 4.00
    """
    if len(answers) == 1:
        return answers[0]
    each = torch.stack([lse for _, lse in answers])
    total = each.logsumexp(0)
    weight = (each - total.masked_fill(total == -torch.inf, 0.0)).exp()
    out = sum(w[..., None] * out for w, (out, _) in zip(weight, answers, strict=True))
    return out.to(answers[0][0].dtype), total


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
    sight: tuple[Seen, Seen] | None = None,
) -> Answer:
    """The same over the blocks that a pattern reads. Each row of the batch is seen without its empty slots in front.

    `sight` is what the pattern is asked with, if it is not q and k.
    """
    start = (at[:, 0] < 0).sum(-1).tolist()
    parts = [slice(None)] if len(set(start)) == 1 else [slice(b, b + 1) for b in range(len(start))]
    outs, ends = [], []
    for row in parts:
        n = start[row.start or 0]
        skip = max(0, n - (k.shape[2] - q.shape[2]))  # of the queries, those that are padding
        mine, keys = q[row, :, skip:], k[row, :, n:]
        asks, asked = (mine, keys) if sight is None else (sight[0][row, :, skip:], sight[1][row, :, n:])
        keep = pattern.attend(asks, asked, budget)
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
    """What a pattern remembers of the blocks of a growing cache, `[batch, kv_heads, blocks, ...]`: made once for each, when it is full."""

    pattern: ByScore
    held: list[Tensor] = field(default_factory=list)

    def begin(self, k: Key, blocks: int) -> None:
        """Of all keys there are."""
        self.held = [_room(d, blocks) for d in self.pattern.digest(k)]

    def grow(self, blocks: int) -> None:
        """Room for so many, and no more."""
        if self.held[0].shape[2] != blocks:
            self.held = [_room(d, blocks) for d in self.held]

    def put(self, index: Int[Tensor, "batch kv_heads"], k: Float[Tensor, "batch kv_heads size dim"]) -> None:
        """Of one block of each head, in place."""
        for held, one in zip(self.held, self.pattern.digest(k), strict=True):
            where = index[..., None, *([None] * (one.ndim - 3))].expand_as(one)
            held.scatter_(2, where, one.to(held.dtype))


def _room(d: Tensor, blocks: int) -> Tensor:
    out = d.new_zeros(*d.shape[:2], blocks, *d.shape[3:])
    out[:, :, : d.shape[2]] = d[:, :, :blocks]
    return out


def newest_block(end: Int[Tensor, "batch kv_heads"], size: int) -> Int[Tensor, "batch kv_heads"]:
    """Where each head's newest slot lies; -1 if it has none."""
    return torch.div(end + size - 1, size, rounding_mode="floor") - 1


def best_blocks(
    pattern: ByScore,
    budget: Budget,
    q: Query,
    digest: Digest,
    end: Int[Tensor, "batch kv_heads"],
    names: Int32[Tensor, "batch kv_heads blocks"],
) -> Named:
    """The blocks, as they are named, that one query reads of caches of different lengths, the newest last: it is always read, and
    has no digest yet. With a budget of keys nothing waits for the device."""
    score, size = pattern.score(q, digest)[:, :, 0], pattern.block
    most = at_most(names.shape[-1], budget, pattern)
    if isinstance(budget.keep, int) and pattern.p == 1:
        return best_pages(score, names, most, end, size)
    own = newest_block(end, size)
    block = torch.arange(score.shape[-1], device=q.device)
    mine = own.repeat_interleave(score.shape[1] // own.shape[1], 1)[..., None]
    score = score.masked_fill(block >= mine, -torch.inf).masked_fill((block >= mine) & (mine <= 0), 0.0)
    keep = choose(together(score[:, :, None], own.shape[1]), own.clamp(min=0)[..., None], budget, pattern)
    blocks = named(keep & (end > 0)[..., None, None], most)
    return names.gather(-1, blocks.clamp(min=0).long()).masked_fill(blocks < 0, -1)


def named(keep: Keep, most: int | None = None) -> Named:
    """The numbers of the kept blocks of one query, in order; -1 behind them."""
    return places(keep[:, :, 0].flatten(0, 1), most).unflatten(0, keep.shape[:2]).int()


def pick(pattern: Pattern, budget: Budget, q: Query, k: Key, length: Int[Tensor, "batch kv_heads"]) -> Named:
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
    return named(out)


def pages_of(blocks: Named, table: Int32[Tensor, "batch kv_heads pages"], size: int, page: int) -> Named:
    """The pages where blocks of `size` slots lie: of a block of several pages all of them, of several blocks in a page their parts,
    as the pools cut into such parts number them."""
    if size < page:
        parts = page // size
        own = table.gather(-1, (blocks // parts).clamp(min=0).long())
        return torch.where((blocks < 0) | (own < 0), -1, own * parts + blocks % parts)
    each = size // page
    at = (blocks[..., None] * each + torch.arange(each, device=blocks.device)).flatten(2)
    there = (at >= 0) & (at < table.shape[-1])
    return table.gather(-1, at.clamp(0, table.shape[-1] - 1).long()).masked_fill(~there, -1)
