"""NSA: blocks in short, the blocks that matter, and what is near, each with a gate."""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import gelu, linear, pad

from fewer.attention import Key, Mixer, Out, Reading, Shape, choose
from fewer.core import Budget, Paper, method
from fewer.kernels import attend_chosen, places
from fewer.kernels._scores import scores, softmax_of

TITLE = "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention"
Short = Float[Tensor, "batch kv_heads shorts dim"]


@method(Paper("2502.11089", TITLE, 2025, ledger=0, equation="eq. 5 to 12"))
class Nsa(Mixer):
    """Add up three attentions, each times a gate: over blocks in short, over the best blocks, over the last `window` tokens.

    Keys and values of `length` tokens, each `stride` tokens, become one in short: their mean plus an MLP of them and their
    places (phi). A query attends to those that lie wholly in its past. What it gives them there counts for the blocks of `block`
    tokens by overlap, p[j] = sum_i p[i] overlap(i, j) / stride, summed over the heads of a group; the best blocks are
    read token by token, as many as the budget has: the `first`, and the `local` last ones, its own among them, always.
    The paper's n = 16 of 64 tokens is the budget 1024. Gates are sigmoid(W x + b), for each head. At first the MLP adds nothing,
    the second gate is 0.98 and the others 0.02, so that a model begins near what it reads; all of it learns
    (`fewer train attention/nsa 1024 -o nsa.safetensors`, or with `--whole`), but the choice, through which no gradient passes.

    Without the MLP (`mlp=False`), with `length=64, stride=64` it is what fla has: means of the blocks themselves, the first and two
    last blocks forced. Differs from the paper: one key and value for the three branches, where it has three of each.

    Four tokens in blocks of two, the last one asks: in short they are 3 and 2 (its own is whole too), of two it may read one:

    >>> m = Nsa(length=2, stride=2, block=2, first=0, local=1, window=1, mlp=False)
    >>> k, v = torch.zeros(1, 1, 4, 1), torch.tensor([[[[1.0], [5.0], [0.0], [4.0]]]])
    >>> r = Reading.of(torch.zeros(1, 1, 1, 1), k, v, {"gate": torch.zeros(3, 1), "bias": torch.tensor([9.0, 9.0, 9.0])})
    >>> round(m.mix(replace(r, x=torch.zeros(1, 1, 1)), budget("2")).item(), 2)  # (3 + 2) / 2 + (0 + 4) / 2 + 4
    8.5
    """

    chooses = True
    sinks = False
    p: ClassVar[float] = 1.0

    length: int = 32
    stride: int = 16
    block: int = 64
    first: int = 1
    local: int = 2
    window: int = 512
    mlp: bool = True
    wide: int = 64  # of the MLP's hidden layer
    file: str = ""

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        if self.block % self.stride or self.length % self.stride:
            raise ValueError(
                f"{self.name}: length={self.length} and block={self.block} must be multiples of stride={self.stride}"
            )
        bias = torch.tensor([-4.0, 4.0, -4.0]).repeat_interleave(shape.heads)
        parts = {"gate": torch.zeros(3 * shape.heads, shape.hidden), "bias": bias}
        flat = self.length * shape.dim
        for name in "kv" if self.mlp else "":
            parts[f"{name}_place"] = torch.randn(self.length, shape.dim, generator=make) * 0.02
            parts[f"{name}_up"] = torch.randn(self.wide, flat, generator=make) * flat**-0.5
            parts[f"{name}_down"] = torch.zeros(shape.dim, self.wide)
        return parts

    def mix(self, r: Reading, budget: Budget) -> Out:
        if r.mask is not None or not r.causal or r.x is None:
            raise ValueError(
                f"{self.name} reads a text's past, by hidden states: not for masks of one's own, nor in encoders"
            )
        r = _by_place(r)
        short = self._short(r, r.k, "k"), self._short(r, r.v, "v")
        outs, keeps = zip(*(self._in_short(r, some, *short, budget) for some in r.chunks()), strict=True)
        keep = torch.cat(keeps, 2)
        index = places(keep.flatten(0, 2)).unflatten(0, keep.shape[:3]).int()
        rest = r.at, r.now, r.scale
        best, _ = attend_chosen(r.q, r.k, r.v, index, self.block, *rest, r.window, r.cap)
        near, _ = attend_chosen(
            r.q, r.k, r.v, self._near(r), self.block, *rest, min(self.window, r.window or self.window), r.cap
        )
        wide = torch.promote_types(r.q.dtype, torch.float32)
        gate = linear(r.x.to(wide), r.parts["gate"].to(wide), r.parts["bias"].to(wide)).sigmoid()
        gates = gate.unflatten(-1, (3, -1)).permute(2, 0, 3, 1)[..., None]
        said = torch.stack([torch.cat(outs, 2), best.to(wide), near.to(wide)])
        return (gates * said).sum(0).to(r.q.dtype)

    def _short(self, r: Reading, x: Key, name: str) -> Short:
        wide = torch.promote_types(x.dtype, torch.float32)
        x = pad(x, (0, 0, 0, max(0, self.length - x.shape[2]))).to(wide)  # a short text's one block is never whole
        some = x.unfold(2, self.length, self.stride).transpose(-1, -2)
        mean = some.mean(3)
        if not self.mlp:
            return mean
        place, up, down = (r.parts[f"{name}_{part}"].to(wide) for part in ("place", "up", "down"))
        return mean + linear(gelu(linear((some + place).flatten(3), up)), down)

    def _in_short(self, r: Reading, some: slice, k: Short, v: Short, budget: Budget) -> tuple[Out, Bool[Tensor, "..."]]:
        """The first branch, and the blocks that the second reads."""
        now = r.now[:, some]
        first = torch.arange(k.shape[2], device=k.device) * self.stride
        there = pad(r.at, (0, max(0, self.length - r.at.shape[2])), value=-1) >= 0
        whole = there.unfold(2, self.length, self.stride).all(-1)[:, :, None]
        last = now[:, None, :, None]
        may = whole & (first + self.length - 1 <= last)
        may = may & (first > last - r.window) if r.window else may
        score = scores(r.grouped(r.q[:, :, some]).to(k.dtype), k[:, :, None], r.scale, r.cap)
        out, lse = softmax_of(score, may[:, :, None], v[:, :, None])
        with torch.no_grad():
            held = (score - lse.clamp(min=torch.finfo(score.dtype).min)[..., None]).exp()
            p = torch.where(may, torch.where(may[:, :, None], held, 0.0).sum(2), 0.0)
            keep = self._best(p, first, r, now.clamp(min=0), budget)
        return out.flatten(1, 2), keep

    def _best(self, p: Tensor, first: Tensor, r: Reading, now: Tensor, budget: Budget) -> Bool[Tensor, "..."]:
        begin = torch.arange(-(-r.k.shape[2] // self.block), device=p.device) * self.block
        ends = torch.minimum(first[:, None] + self.length, begin + self.block)
        overlap = (ends - torch.maximum(first[:, None], begin)).clamp(min=0) / self.stride
        own = torch.div(now, self.block, rounding_mode="floor")[:, None]
        block = torch.arange(len(begin), device=p.device)
        forced = (block < self.first) | (block > own[..., None] - self.local)
        return choose((p @ overlap.to(p.dtype)).masked_fill(forced, 1e30), own, budget, self)  # type: ignore[arg-type]

    def _near(self, r: Reading) -> Tensor:
        back = torch.arange((self.window + self.block - 2) // self.block + 1, device=r.q.device)
        own = torch.div(r.now.clamp(min=0), self.block, rounding_mode="floor")[:, None, :, None]
        index = own - back
        return index.masked_fill(index < 0, -1).expand(-1, r.k.shape[1], -1, -1).int().contiguous()


def _by_place(r: Reading) -> Reading:
    """With the token of place n in slot n, and nothing (-1) where none is."""
    total = max(int(r.at.max()), int(r.now.max()), 0) + 1
    place = torch.arange(total, dtype=r.at.dtype, device=r.at.device)
    if r.at.shape[2] == total and bool((r.at == place).all()):
        return r
    where = r.at.long().masked_fill(r.at < 0, total)

    def put(x: Key) -> Key:
        empty = x.new_zeros(*x.shape[:2], total + 1, x.shape[3])
        return empty.scatter(2, where[..., None].expand_as(x), x)[:, :, :total]

    at = r.at.new_full((*r.at.shape[:2], total + 1), -1).scatter(2, where, r.at)
    return replace(r, k=put(r.k), v=put(r.v), at=at[..., :total].contiguous())
