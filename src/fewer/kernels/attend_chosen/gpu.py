"""attend_chosen with Triton: query by query or block by block, whatever moves less; sums that nobody shares."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewer.kernels.attend_blocks._backward import inner

from . import _backward, _forward, ref
from ._columns import Chosen, by_blocks, cut

WIDEST = 256  # a head's numbers that a tile can hold
FOREVER = 2**31 - 1  # no window
LARGEST = 1 << 31  # bytes of parts at a time


@dataclass(frozen=True)
class Cut:
    """How the work is cut: rows of a tile, keys of a tile, warps, loads under way at a time, tiles of a stretch."""

    rows: int
    cols: int
    warps: int
    stages: int
    tiles: int = 64
    registers: int | None = None  # of a thread, at most


@dataclass(frozen=True)
class Cuts:
    """For queries one by one, and for blocks, there and back."""

    query: Cut = Cut(64, 64, 4, 3)
    there: Cut = Cut(128, 64, 8, 2)
    back: Cut = Cut(64, 64, 8, 2)


def cuts_of(dim: int, size: int) -> Cuts:
    if size > 2 or dim > 128:
        return Cuts(Cut(64, 32, 4, 2), Cut(64, 32, 4, 2), Cut(32, 32, 4, 2))
    return Cuts()


@dataclass(frozen=True)
class Task:
    """What is the same for all launches: a unit is a key-value head of a sequence; `cuts` and `way` may be set to try others out."""

    block: int
    scale: float
    window: int
    cap: float
    cuts: Cuts
    by_queries: bool


def goes_by_queries(index: Tensor, block: int, keys: int, group: int, dim: int, out: int, rows: int) -> bool:
    """By bytes, for each choice of each query.

    Query by query, its block comes from the second cache: block (dim + out) numbers. Block by block, its queries do (dim numbers a
    head), and its parts go to memory and come back, which is half as fast (4 out numbers a head); and tiles that few chose are loaded all
    the same. With blocks of 64 keys and 128 numbers, the first is cheaper from a group of 26 on, with single keys always.
    """
    blocks = -(-keys // block)
    chosen = max(1.0, index.shape[1] * index.shape[2] * group / max(1, blocks))  # rows of a block, on average
    return block * (dim + out) <= group * (dim + 4 * out) * max(1.0, rows / chosen)


def attend_chosen(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys out"],
    index: Int32[Tensor, "batch kv_heads queries reads"],
    block: int,
    at: Int32[Tensor, "batch kv_heads keys"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    by_queries: bool | None = None,
    cuts: Cuts | None = None,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    dim, out_dim, group = q.shape[-1], v.shape[-1], q.shape[1] // max(1, k.shape[1])
    able = q.dtype == k.dtype == v.dtype != torch.float64 and max(dim, out_dim) <= WIDEST
    if not able or not all(t.numel() for t in (q, k, v, index)):
        return ref.attend_chosen(q, k, v, index, block, at, now, scale, window, cap)
    cuts = cuts or cuts_of(max(dim, out_dim), q.element_size())
    mine = index.flatten(0, 1).contiguous()
    if by_queries is None:
        by_queries = goes_by_queries(mine, block, k.shape[2], group, dim, out_dim, cuts.there.rows)
    task = Task(block, scale, window, cap, cuts, by_queries)
    last = now.repeat_interleave(k.shape[1], 0).contiguous()
    flat = q.unflatten(1, (k.shape[1], group)).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    out, lse = _Attend.apply(*(t.contiguous() for t in flat), mine, at.flatten(0, 1).contiguous(), last, task)
    return out.view(*q.shape[:3], out_dim), lse.view(q.shape[:3])


class _Attend(torch.autograd.Function):
    """Of units: q is [units, group, queries, dim]. Both results have gradients."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, index: Tensor, at: Tensor, now: Tensor, task: Task
    ) -> tuple[Tensor, Tensor]:
        out, lse = forward(q, k, v, index, at, now, task)
        ctx.save_for_backward(q, k, v, index, at, now, out, lse)
        ctx.task = task
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor, lse_given: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, index, at, now, out, lse = ctx.saved_tensors
        delta = torch.empty_like(lse)
        given, lse_given, wide = given.contiguous(), lse_given.contiguous(), triton.next_power_of_2(out.shape[-1])
        grid = (triton.cdiv(lse.numel(), 32),)
        inner[grid](out, given, lse_given, delta, lse.numel(), out.shape[-1], TALL=32, E=wide)
        return *backward(q, k, v, index, at, now, given, lse, delta, ctx.task), None, None, None, None


def _pieces(q: Tensor, index: Tensor, size: int) -> list[tuple[slice, slice]]:
    """Units and queries at a time, so that what each choice and head gives (`size` bytes) stays below LARGEST."""
    units, queries, reads = index.shape
    one = queries * reads * q.shape[1] * size
    many, cuts = max(1, LARGEST // one), -(-one // LARGEST)
    high = -(-queries // cuts)
    rows = [slice(i, min(i + high, queries)) for i in range(0, queries, high)]
    return [(slice(i, min(i + many, units)), r) for i in range(0, units, many) for r in rows]


def _sizes(q: Tensor, v: Tensor, task: Task) -> dict[str, Any]:
    d, e = (max(16, triton.next_power_of_2(n)) for n in (q.shape[-1], v.shape[-1]))
    exact = "ieee" if q.dtype == torch.float32 else "tf32"
    return {"BLOCK": task.block, "D": d, "E": e, "CAP": task.cap > 0, "EXACT": exact}


def _numbers(q: Tensor, k: Tensor, v: Tensor, index: Tensor, task: Task) -> tuple[float, ...]:
    sizes = q.shape[1], q.shape[2], k.shape[1], index.shape[-1], q.shape[-1], v.shape[-1]
    return *sizes, task.scale, task.window or FOREVER, task.cap


def _tile(cut: Cut, group: int, block: int) -> dict[str, int]:
    pack = min(cut.rows, triton.next_power_of_2(group))
    return {"PACK": pack, "TALL": cut.rows, "COLS": min(cut.cols, max(16, triton.next_power_of_2(block)))}


def _by_queries(q: Tensor, index: Tensor, task: Task) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid, and what is known of it when it is compiled."""
    rows = min(task.cuts.query.rows, max(16, triton.next_power_of_2(q.shape[1])))
    cols = task.cuts.query.cols
    if task.block >= 16 and task.block % cols:
        cols = max(16, min(cols, task.block & -task.block))
    grid = q.shape[2], len(q), triton.cdiv(q.shape[1], rows)
    return grid, {"ROWS": rows, "COLS": cols, "num_warps": task.cuts.query.warps, "num_stages": task.cuts.query.stages}


def forward(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, at: Tensor, now: Tensor, task: Task
) -> tuple[Tensor, Tensor]:
    """The result, and the logarithm of the denominator."""
    out = torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if task.by_queries:
        grid, how = _by_queries(q, index, task)
        numbers = _numbers(q, k, v, index, task)
        _forward.by_queries[grid](q, k, v, index, at, now, out, lse, *numbers, **how, **_sizes(q, v, task))
        return out, lse
    for u, r in _pieces(q, index, v.shape[-1] * q.element_size()):
        rows = q[u, :, r].contiguous(), k[u], v[u], index[u, r].contiguous(), at[u], now[u, r].contiguous()
        if r == slice(0, q.shape[2]):
            _piece(*rows, out[u], lse[u], task)
            continue
        part, level = out[u, :, r].contiguous(), lse[u, :, r].contiguous()
        _piece(*rows, part, level, task)
        out[u, :, r], lse[u, :, r] = part, level
    return out, lse


def _piece(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, at: Tensor, now: Tensor, out: Tensor, lse: Tensor, task: Task
) -> None:
    """Block by block, then together."""
    (units, group, queries), blocks, how = q.shape[:3], -(-k.shape[1] // task.block), task.cuts.there
    tile = _tile(how, group, task.block)
    chosen = by_blocks(index, blocks)
    tiles = cut(chosen, tile["TALL"] // tile["PACK"], 0)
    parts = torch.empty(*index.shape, group, v.shape[-1], dtype=q.dtype, device=q.device)
    levels = torch.empty(*index.shape, group, dtype=torch.float32, device=q.device)
    _forward.by_blocks[(len(tiles.owner), triton.cdiv(group, tile["PACK"]))](
        q, k, v, at, now, chosen.order, chosen.start, tiles.first, tiles.owner, parts, levels, units, blocks,
        *_numbers(q, k, v, index, task), **tile, **_sizes(q, v, task), num_warps=how.warps, num_stages=how.stages, maxnreg=how.registers,
    )  # fmt: skip
    rows, sizes = units * queries * group, _sizes(q, v, task)
    _forward.together[(triton.cdiv(rows, 16),)](
        parts, levels, index, out, lse, rows, blocks, group, queries, index.shape[-1], v.shape[-1], ROWS=16, E=sizes["E"]
    )  # fmt: skip


def backward(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, at: Tensor, now: Tensor, given: Tensor, lse: Tensor, delta: Tensor,
    task: Task,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v."""
    dq, dk, dv = (torch.empty_like(t) for t in (q, k, v))
    total: list[Tensor] = []
    size = 0 if task.by_queries else q.shape[-1] * q.element_size() * -(-task.block // task.cuts.back.cols)
    if task.by_queries:
        grid, how = _by_queries(q, index, task)
        how |= _sizes(q, v, task)
        numbers = _numbers(q, k, v, index, task)
        _backward.for_queries[grid](q, k, v, index, at, now, given, lse, delta, dq, *numbers, **how)
    for u, r in _pieces(q, index, size or 1):
        mine, wanted, level, less = (t[u, :, r].contiguous() for t in (q, given, lse, delta))
        lists = index[u, r].contiguous(), at[u], now[u, r].contiguous()
        part = r != slice(0, q.shape[2])
        found, *sums = _piece_back(mine, wanted, level, less, k[u], v[u], *lists, task, part)
        if found is not None:
            dq[u, :, r] = found
        total = [a + b for a, b in zip(total, sums, strict=True)] if r.start else sums
        if r.stop == q.shape[2]:
            dk[u], dv[u] = total
    return dq, dk, dv


def _piece_back(
    q: Tensor, given: Tensor, lse: Tensor, delta: Tensor, k: Tensor, v: Tensor, index: Tensor, at: Tensor, now: Tensor,
    task: Task, part: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """dq unless it was made query by query; dk and dv, in float32 if they are but a part of the sum."""
    (units, group, queries), keys, (dim, out_dim) = q.shape[:3], k.shape[1], (q.shape[-1], v.shape[-1])
    how, blocks = task.cuts.back, -(-keys // task.block)
    tile, sizes, device = _tile(how, group, task.block), _sizes(q, v, task), q.device
    times, stretch = -(-task.block // tile["COLS"]), how.tiles * (tile["TALL"] // tile["PACK"])
    chosen: Chosen = by_blocks(index, blocks)
    cuts = cut(chosen, stretch, 1)
    dk, dv = (torch.empty(t.shape, dtype=torch.float32 if part else t.dtype, device=device) for t in (k, v))
    more = [torch.empty(max(1, cuts.spare), task.block, n, dtype=torch.float32, device=device) for n in (dim, out_dim)]
    size = 1 if task.by_queries else index.numel() * times * group * dim
    parts = torch.empty(size, dtype=q.dtype, device=device)
    _backward.for_keys[(len(cuts.owner), times)](
        q, k, v, at, now, chosen.order, chosen.start, cuts.first, cuts.owner, cuts.over, given, lse, delta, parts,
        dk, dv, *more, units, blocks, *_numbers(q, k, v, index, task), triton.cdiv(group, tile["PACK"]), stretch,
        **tile, **sizes, QUERIES=not task.by_queries, num_warps=how.warps, num_stages=how.stages, maxnreg=how.registers,
    )  # fmt: skip
    for one, to, wide in ((more[0], dk, sizes["D"]), (more[1], dv, sizes["E"])):
        _backward.add_stretches[(units * blocks, triton.cdiv(task.block, 16))](
            one, cuts.over, cuts.first, to, blocks, keys, to.shape[-1], BLOCK=task.block, ROWS=16, D=wide
        )
    if task.by_queries:
        return None, dk, dv
    dq, rows = torch.empty_like(q), units * queries * group
    _backward.add_parts[(triton.cdiv(rows, 16),)](
        parts, index, dq, rows, blocks, group, queries, index.shape[-1], times, dim, task.scale, ROWS=16, D=sizes["D"]
    )
    return dq, dk, dv
