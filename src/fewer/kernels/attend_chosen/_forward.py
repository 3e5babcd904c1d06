"""attend_chosen with Triton, the way there: query by query, or block by block with the parts put together afterwards.

Units are key-value heads of all sequences. A tile of the second way is choices of one block, each with the heads of its group: row r is
choice r // PACK, head r % PACK. So a block is read once for all who chose it, and small groups fill tiles as well as large ones.
"""

import triton
import triton.language as tl

from fewer.kernels.attend_blocks._forward import LN2, bounded, may_read


@triton.jit
def read(x, col, keys, dim, COLS: tl.constexpr, D: tl.constexpr):
    """The rows `col` of a matrix, zeros for those that do not exist."""
    lane, there = tl.arange(0, D), (col >= 0) & (col < keys)
    return tl.load(x + col.to(tl.int64)[:, None] * dim + lane[None, :], mask=there[:, None] & (lane < dim), other=0.0)


@triton.jit
def named(names, first, reads, BLOCK: tl.constexpr, COLS: tl.constexpr):
    """The keys `first`, ... of those that a query reads, in the order of its list; below 0 where none is named."""
    if BLOCK % COLS == 0:  # all of one block
        name = tl.load(names + first // BLOCK)
        col = tl.where(name < 0, -1, name * BLOCK + first % BLOCK + tl.arange(0, COLS))
    else:
        slot = first + tl.arange(0, COLS)
        name = tl.load(names + slot // BLOCK, mask=slot < reads * BLOCK, other=-1)
        col = tl.where(name < 0, -1, name * BLOCK + slot % BLOCK)
    return col


@triton.jit
def seen(at, last, col, keys, window):
    """Which of these keys one query may read."""
    place = tl.load(at + col, mask=(col >= 0) & (col < keys), other=-1)
    return (place >= 0) & (place <= last) & (place > last - window)


@triton.jit
def soften(s, may, acc, high, total, v, EXACT: tl.constexpr):
    """A step of softmax: `s` in units of log 2, `high` the largest so far, `total` the sum of exp2."""
    s = tl.where(may, s, float("-inf"))
    new = tl.maximum(high, tl.max(s, 1))
    safe = tl.where(new == float("-inf"), 0.0, new)
    p, fade = tl.exp2(s - safe[:, None]), tl.exp2(high - safe)
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=EXACT)
    return acc, new, total * fade + tl.sum(p, 1)


@triton.jit
def by_queries(
    q, k, v, index, at, now, out, lse, group, queries, keys, reads, dim, out_dim, scale, window, cap,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CAP: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """One query, some heads of one unit. The last queries, which read the most, go first."""
    query, unit = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    mine, lane, wide = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, E)
    real = mine < group
    place = (unit * group + mine) * queries + query
    x = tl.load(q + place[:, None] * dim + lane[None, :], mask=real[:, None] & (lane < dim)[None, :], other=0.0)
    last = tl.load(now + unit * queries + query)
    names = index + (unit * queries + query) * reads
    k, v, at = k + unit * keys * dim, v + unit * keys * out_dim, at + unit * keys
    acc, total = tl.zeros([ROWS, E], tl.float32), tl.zeros([ROWS], tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    for first in range(0, reads * BLOCK, COLS):
        col = named(names, first, reads, BLOCK, COLS)
        s = tl.dot(x, tl.trans(read(k, col, keys, dim, COLS, D)), input_precision=EXACT)
        may = seen(at, last, col, keys, window)[None, :]
        there = read(v, col, keys, out_dim, COLS, E)
        acc, high, total = soften(bounded(s, scale, cap, CAP), may, acc, high, total, there, EXACT)
    none = total == 0
    level = tl.where(none, float("-inf"), (high + tl.log2(tl.where(none, 1.0, total))) * LN2)
    tl.store(lse + place, level, mask=real)
    acc = acc / tl.where(none, 1.0, total)[:, None]
    mask = real[:, None] & (wide < out_dim)[None, :]
    tl.store(out + place[:, None] * out_dim + wide[None, :], acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def choices(order, begin, end, piece, group, queries, reads, unit, PACK: tl.constexpr, TALL: tl.constexpr):
    """Of each row of a tile: the number of its choice, its head, its query, the place of both in q, whether they exist."""
    row = tl.arange(0, TALL)
    choice, mine = begin + row // PACK, piece * PACK + row % PACK
    real = (choice < end) & (mine < group)
    flat = tl.load(order + choice, mask=real, other=0).to(tl.int64)
    query = flat // reads - unit * queries
    return flat, mine, query, (unit * group + mine) * queries + query, real


@triton.jit
def by_blocks(
    q, k, v, at, now, order, start, first, owner, parts, levels,
    units, blocks, group, queries, keys, reads, dim, out_dim, scale, window, cap,
    BLOCK: tl.constexpr, PACK: tl.constexpr, TALL: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    CAP: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One tile of one block: what each choice would see if it were the only one, and its level (base 2)."""
    tile = tl.program_id(0)
    name = tl.load(owner + tile)
    if name >= units * blocks:
        return
    unit, block = (name // blocks).to(tl.int64), name % blocks
    begin, end = tl.load(start + name) + (tile - tl.load(first + name)) * (TALL // PACK), tl.load(start + name + 1)
    piece = tl.program_id(1)
    flat, mine, query, place, real = choices(order, begin, end, piece, group, queries, reads, unit, PACK, TALL)
    lane, wide = tl.arange(0, D), tl.arange(0, E)
    x = tl.load(q + place[:, None] * dim + lane[None, :], mask=real[:, None] & (lane < dim)[None, :], other=0.0)
    last = tl.load(now + unit * queries + query, mask=real, other=-1)
    k, v, at = k + unit * keys * dim, v + unit * keys * out_dim, at + unit * keys
    acc, total = tl.zeros([TALL, E], tl.float32), tl.zeros([TALL], tl.float32)
    high, stop = tl.full([TALL], float("-inf"), tl.float32), tl.minimum(keys, block * BLOCK + BLOCK)
    for j in range((BLOCK + COLS - 1) // COLS):
        col = block * BLOCK + j * COLS + tl.arange(0, COLS)
        s = tl.dot(x, tl.trans(read(k, col, stop, dim, COLS, D)), input_precision=EXACT)
        may = may_read(at, last, col, stop, window)
        there = read(v, col, stop, out_dim, COLS, E)
        acc, high, total = soften(bounded(s, scale, cap, CAP), may, acc, high, total, there, EXACT)
    none = total == 0
    to = flat * group + mine
    tl.store(levels + to, tl.where(none, float("-inf"), high + tl.log2(tl.where(none, 1.0, total))), mask=real)
    acc = acc / tl.where(none, 1.0, total)[:, None]
    mask = real[:, None] & (wide < out_dim)[None, :]
    tl.store(parts + to[:, None] * out_dim + wide[None, :], acc.to(parts.dtype.element_ty), mask=mask)


@triton.jit
def together(
    parts, levels, index, out, lse, rows, blocks, group, queries, reads, out_dim, ROWS: tl.constexpr, E: tl.constexpr
):
    """The parts of some queries and heads, each by the weight that its level gives."""
    row, wide = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, E)
    query, mine = row // group, row % group  # of all units
    acc, total = tl.zeros([ROWS, E], tl.float32), tl.zeros([ROWS], tl.float32)
    high = tl.full([ROWS], float("-inf"), tl.float32)
    for slot in range(reads):
        name = tl.load(index + query * reads + slot, mask=row < rows, other=-1)
        there, at = (name >= 0) & (name < blocks), (query * reads + slot) * group + mine
        level = tl.load(levels + at, mask=there, other=float("-inf"))
        part = tl.load(parts + at[:, None] * out_dim + wide[None, :], mask=there[:, None] & (wide < out_dim), other=0.0)
        new = tl.maximum(high, level)
        safe = tl.where(new == float("-inf"), 0.0, new)
        weight, fade = tl.exp2(level - safe), tl.exp2(high - safe)
        acc = acc * fade[:, None] + part.to(tl.float32) * weight[:, None]
        total, high = total * fade + weight, new
    none = total == 0
    acc = acc / tl.where(none, 1.0, total)[:, None]
    place = (query // queries * group + mine) * queries + query % queries
    level = tl.where(none, float("-inf"), (high + tl.log2(tl.where(none, 1.0, total))) * LN2)
    tl.store(lse + place, level, mask=row < rows)
    mask = (row < rows)[:, None] & (wide < out_dim)[None, :]
    tl.store(out + place[:, None] * out_dim + wide[None, :], acc.to(out.dtype.element_ty), mask=mask)
