"""attend_pages with Triton: the slots are shared out among programs, and a second kernel merges what they found.

A group's heads and queries are the rows of one product, so a key is read once. Nothing waits for the host: both grids follow from
shapes, so a CUDA graph can hold them.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from . import ref

WIDEST = 256  # a head's numbers that a tile can hold
TALLEST = 64  # rows of a product
FOREVER = 2**31 - 1  # no window
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _part(
    q, k, v, at, table, now, out, lse,
    k_page, k_slot, v_page, v_slot, kv_heads, group, queries, reads, dim, out_dim, tiles, scale, window, cap,
    PAGE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    CAP: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """Some tiles of slots, for some rows of one key-value head: their softmax, and its denominator's logarithm (base 2)."""
    split, unit, count = tl.program_id(0), tl.program_id(1).to(tl.int64), group * queries
    row, lane, wide = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, E)
    real = row < count
    place = unit * count + row  # of batch, head, query: heads of a group are neighbours
    mine = tl.load(q + place[:, None] * dim + lane[None, :], mask=real[:, None] & (lane < dim)[None, :], other=0.0)
    last = tl.load(now + unit // kv_heads * queries + row % queries, mask=real, other=-1)[:, None]
    if WIDE:
        mine = mine.to(tl.float32)
    acc, total = tl.zeros([ROWS, E], tl.float32), tl.zeros([ROWS], tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    if ONE:
        tiles = 1  # no loop at all
    for tile in range(split * tiles, split * tiles + tiles):
        slot = tile * COLS + tl.arange(0, COLS)
        page = tl.load(table + unit * reads + slot // PAGE, mask=slot < reads * PAGE, other=-1).to(tl.int64)
        there, within = page >= 0, slot % PAGE
        where = tl.load(at + page * PAGE + within, mask=there, other=-1)
        here = k + (page * k_page + within * k_slot)[:, None] + lane[None, :]
        keys = tl.load(here, mask=there[:, None] & (lane < dim)[None, :], other=0.0)
        here = v + (page * v_page + within * v_slot)[:, None] + wide[None, :]
        values = tl.load(here, mask=there[:, None] & (wide < out_dim)[None, :], other=0.0)
        values = tl.where((where >= 0)[:, None], values, 0.0)  # whatever an empty slot holds
        if WIDE:
            keys, values = keys.to(tl.float32), values.to(tl.float32)
        s = tl.dot(mine, tl.trans(keys), input_precision="ieee") * (scale * LOG2E)
        if CAP:
            s = cap * LOG2E * (1 - 2 / (tl.exp2(s * (2 / cap)) + 1))  # cap tanh(s / cap)
        seen = where[None, :]
        s = tl.where((seen >= 0) & (seen <= last) & (seen > last - window), s, float("-inf"))
        new = tl.maximum(high, tl.max(s, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        p, fade = tl.exp2(s - safe[:, None]), tl.exp2(high - safe)
        total = total * fade + tl.sum(p, 1)
        acc = tl.dot(p.to(values.dtype), values, acc * fade[:, None], input_precision="ieee")
        high = new
    none = total == 0
    level = tl.where(none, float("-inf"), high + tl.log2(tl.where(none, 1.0, total)))
    acc = acc / tl.where(none, 1.0, total)[:, None]
    place = place * tl.num_programs(0) + split
    if WHOLE:
        level = level * LN2
    tl.store(lse + place, level, mask=real)
    mask = real[:, None] & (wide < out_dim)[None, :]
    tl.store(out + place[:, None] * out_dim + wide[None, :], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _merge(parts, levels, out, lse, splits, out_dim, SPLITS: tl.constexpr, E: tl.constexpr):
    """One query of one head: its parts, each by the weight that its logarithm gives."""
    row, wide, each = tl.program_id(0).to(tl.int64), tl.arange(0, E), tl.arange(0, SPLITS)
    level = tl.load(levels + row * splits + each, mask=each < splits, other=float("-inf"))
    high = tl.max(level, 0)
    weight = tl.exp2(level - tl.where(high == float("-inf"), 0.0, high))
    total = tl.sum(weight, 0)
    here = parts + (row * splits + each)[:, None] * out_dim + wide[None, :]
    part = tl.load(here, mask=(each < splits)[:, None] & (wide < out_dim)[None, :], other=0.0)
    none = total == 0
    acc = tl.sum(part * weight[:, None], 0) / tl.where(none, 1.0, total)
    tl.store(out + row * out_dim + wide, acc.to(out.dtype.element_ty), mask=wide < out_dim)
    tl.store(lse + row, tl.where(none, float("-inf"), (high + tl.log2(tl.where(none, 1.0, total))) * LN2))


@lru_cache
def processors(device: torch.device) -> int:
    """How many programs can run at once, one on each."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@dataclass(frozen=True)
class Cut:
    """How the work is cut: slots of a tile, warps, loads under way at a time, programs a processor, warps of a merge."""

    cols: int
    warps: int = 4
    stages: int = 3
    programs: int = 4
    merge: int = 4


def cut_of(slots: int, units: int, processors: int, large: bool) -> Cut:
    """One tile a program if there are few (measured on an H100)."""
    if large:
        return Cut(32)
    return Cut(64, 4, 1, 4, 1) if slots * units <= 64 * 4 * processors else Cut(128, 4, 2, 2)


def splits_of(tiles: int, units: int, programs: int) -> tuple[int, int]:
    """Into how many parts the tiles are cut, and tiles of a part: enough programs to fill the GPU, 128 parts at most."""
    each = triton.cdiv(tiles, min(128, max(1, triton.cdiv(programs, units))))
    return triton.cdiv(tiles, each), each


def attend_pages(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "pages page dim"],
    v: Float[Tensor, "pages page out"],
    at: Int32[Tensor, "pages page"],
    table: Int32[Tensor, "batch kv_heads reads"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    cut: Cut | None = None,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    (batch, heads, queries, dim), (kv_heads, reads), (page, out_dim) = q.shape, table.shape[1:], v.shape[1:]
    if q.dtype == torch.float64 or max(dim, out_dim) > WIDEST:
        return ref.attend_pages(q, k, v, at, table, now, scale, window, cap)
    out = torch.empty(batch, heads, queries, out_dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if not out.numel() or not reads or not k.numel():
        return out.zero_(), lse.fill_(-torch.inf)
    k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (k, v))
    count, wide = heads // kv_heads * queries, not q.dtype == k.dtype == v.dtype or q.element_size() > 2
    rows, (d, e) = max(16, triton.next_power_of_2(count)), (max(16, triton.next_power_of_2(n)) for n in (dim, out_dim))
    rows = min(TALLEST, rows)
    high = triton.cdiv(count, rows)
    slots, units, most = reads * page, batch * kv_heads * high, processors(q.device)
    cut = cut or cut_of(slots, units, most, wide or max(d, e) > 128)
    splits, tiles = splits_of(triton.cdiv(slots, cut.cols), units, cut.programs * most)
    parts = [out, lse]
    if splits > 1:
        parts = [torch.empty(*t.shape[:3], splits, *t.shape[3:], dtype=torch.float32, device=q.device) for t in parts]
    _part[(splits, batch * kv_heads, high)](
        q.contiguous(), k, v, at.contiguous(), table.contiguous(), now.contiguous(), *parts,
        *k.stride()[:2], *v.stride()[:2], kv_heads, heads // kv_heads, queries, reads, dim, out_dim, tiles,
        scale, window or FOREVER, cap, PAGE=page, ROWS=rows, COLS=cut.cols, D=d, E=e,
        CAP=cap > 0, WIDE=wide, WHOLE=splits == 1, ONE=tiles == 1, num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    if splits > 1:
        _merge[(lse.numel(),)](
            *parts,
            out,
            lse,
            splits,
            out_dim,
            SPLITS=triton.next_power_of_2(splits),
            E=e,
            num_warps=cut.merge,
        )
    return out, lse
