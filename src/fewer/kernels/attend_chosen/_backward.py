"""attend_chosen with Triton, the way back: key by key over all who chose it, and query by query or in parts that are added up.

With p = exp(score - lse), dp = dout v^T and ds = p (dp - (dout . out - dlse)): dv = p^T dout, dk = scale ds^T q, dq = scale ds k. A block that
many chose is cut into stretches of its list, so that no program works much longer than others; their sums are added in order.
"""

import triton
import triton.language as tl

from fewer.kernels.attend_blocks._backward import slope
from fewer.kernels.attend_blocks._forward import LOG2E

from ._forward import choices, named, read, seen


@triton.jit
def level_of(lse, place, real):
    """In units of log 2; who read nothing gives nothing."""
    level = tl.load(lse + place, mask=real, other=float("inf")) * LOG2E
    return tl.where(level == float("-inf"), float("inf"), level)


@triton.jit
def for_queries(
    q, k, v, index, at, now, given, lse, delta, dq, group, queries, keys, reads, dim, out_dim, scale, window, cap,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CAP: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """dq of one query and some heads, as `by_queries` goes."""
    query, unit = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    mine, lane, wide = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, D), tl.arange(0, E)
    real = mine < group
    place = (unit * group + mine) * queries + query
    x = tl.load(q + place[:, None] * dim + lane[None, :], mask=real[:, None] & (lane < dim)[None, :], other=0.0)
    here = given + place[:, None] * out_dim + wide[None, :]
    wanted = tl.load(here, mask=real[:, None] & (wide < out_dim)[None, :], other=0.0)
    level, less = level_of(lse, place, real), tl.load(delta + place, mask=real, other=0.0)
    last = tl.load(now + unit * queries + query)
    names = index + (unit * queries + query) * reads
    k, v, at = k + unit * keys * dim, v + unit * keys * out_dim, at + unit * keys
    acc = tl.zeros([ROWS, D], tl.float32)
    for first in range(0, reads * BLOCK, COLS):
        col = named(names, first, reads, BLOCK, COLS)
        there = read(k, col, keys, dim, COLS, D)
        s = tl.dot(x, tl.trans(there), input_precision=EXACT)
        dp = tl.dot(wanted, tl.trans(read(v, col, keys, out_dim, COLS, E)), input_precision=EXACT)
        may = seen(at, last, col, keys, window)[None, :]
        _, ds = slope(s, dp, level[:, None], less[:, None], may, scale, cap, True, CAP)
        acc = tl.dot(ds.to(there.dtype), there, acc, input_precision=EXACT)
    mask = real[:, None] & (lane < dim)[None, :]
    tl.store(dq + place[:, None] * dim + lane[None, :], (acc * scale).to(dq.dtype.element_ty), mask=mask)


@triton.jit
def for_keys(
    q, k, v, at, now, order, start, first, owner, over, given, lse, delta, parts, dk, dv, more_k, more_v,
    units, blocks, group, queries, keys, reads, dim, out_dim, scale, window, cap, pieces, stretch,
    BLOCK: tl.constexpr, PACK: tl.constexpr, TALL: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    CAP: tl.constexpr, EXACT: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """dk and dv of COLS keys of one block from `stretch` of its choices, and parts of dq. Scores lie here as [keys, queries].

    The only stretch of a block writes its result; of several, each writes where `over` says that there is more.
    """
    each, part = tl.program_id(0), tl.program_id(1)
    name = tl.load(owner + each)
    if name >= units * blocks:
        return
    unit, block = (name // blocks).to(tl.int64), name % blocks
    number, stop = each - tl.load(first + name), tl.minimum(keys, block * BLOCK + BLOCK)
    begin = tl.load(start + name) + number * stretch
    end = tl.minimum(tl.load(start + name + 1), begin + stretch)
    col, lane, wide = block * BLOCK + part * COLS + tl.arange(0, COLS), tl.arange(0, D), tl.arange(0, E)
    mine_k = read(k + unit * keys * dim, col, stop, dim, COLS, D)
    mine_v = read(v + unit * keys * out_dim, col, stop, out_dim, COLS, E)
    place = tl.load(at + unit * keys + col, mask=col < stop, other=-1)[:, None]
    to_k, to_v = tl.zeros([COLS, D], tl.float32), tl.zeros([COLS, E], tl.float32)
    for piece in range(pieces):
        for some in range(begin, end, TALL // PACK):
            flat, head, query, row, real = choices(order, some, end, piece, group, queries, reads, unit, PACK, TALL)
            x = tl.load(q + row[:, None] * dim + lane[None, :], mask=real[:, None] & (lane < dim)[None, :], other=0.0)
            here = given + row[:, None] * out_dim + wide[None, :]
            wanted = tl.load(here, mask=real[:, None] & (wide < out_dim)[None, :], other=0.0)
            level, less = level_of(lse, row, real), tl.load(delta + row, mask=real, other=0.0)
            s = tl.dot(mine_k, tl.trans(x), input_precision=EXACT)
            dp = tl.dot(mine_v, tl.trans(wanted), input_precision=EXACT)
            past = tl.load(now + unit * queries + query, mask=real, other=-1)[None, :]
            may = (place >= 0) & (place <= past) & (place > past - window)
            p, ds = slope(s, dp, level[None, :], less[None, :], may, scale, cap, True, CAP)
            to_v = tl.dot(p.to(wanted.dtype), wanted, to_v, input_precision=EXACT)
            low = ds.to(x.dtype)
            to_k = tl.dot(low, x, to_k, input_precision=EXACT)
            if QUERIES:
                found = tl.dot(tl.trans(low), mine_k, input_precision=EXACT)
                there = parts + ((flat * tl.num_programs(1) + part) * group + head)[:, None] * dim + lane[None, :]
                tl.store(there, found.to(parts.dtype.element_ty), mask=real[:, None] & (lane < dim)[None, :])
    to_k, spare = to_k * scale, tl.load(over + name)
    if spare < 0:
        here, inside = (unit * keys + col)[:, None], (col < stop)[:, None]
        low_k, low_v = to_k.to(dk.dtype.element_ty), to_v.to(dv.dtype.element_ty)
        tl.store(dk + here * dim + lane[None, :], low_k, mask=inside & (lane < dim)[None, :])
        tl.store(dv + here * out_dim + wide[None, :], low_v, mask=inside & (wide < out_dim)[None, :])
    else:
        within = part * COLS + tl.arange(0, COLS)
        here, inside = ((spare + number).to(tl.int64) * BLOCK + within)[:, None], (within < BLOCK)[:, None]
        tl.store(more_k + here * dim + lane[None, :], to_k, mask=inside & (lane < dim)[None, :])
        tl.store(more_v + here * out_dim + wide[None, :], to_v, mask=inside & (wide < out_dim)[None, :])


@triton.jit
def add_stretches(more, over, first, to, blocks, keys, dim, BLOCK: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):
    """Of a block with several stretches: the sum of theirs, in order."""
    name = tl.program_id(0)
    spare = tl.load(over + name)
    if spare < 0:
        return
    within, lane = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
    inside = (within < BLOCK)[:, None] & (lane < dim)[None, :]
    acc = tl.zeros([ROWS, D], tl.float32)
    for i in range(tl.load(first + name + 1) - tl.load(first + name)):
        here = more + ((spare + i).to(tl.int64) * BLOCK + within)[:, None] * dim + lane[None, :]
        acc += tl.load(here, mask=inside, other=0.0)
    unit, col = (name // blocks).to(tl.int64), name % blocks * BLOCK + within
    here = to + (unit * keys + col)[:, None] * dim + lane[None, :]
    tl.store(here, acc.to(to.dtype.element_ty), mask=inside & (col < keys)[:, None])


@triton.jit
def add_parts(
    parts, index, dq, rows, blocks, group, queries, reads, times, dim, scale, ROWS: tl.constexpr, D: tl.constexpr
):
    """dq of some queries and heads: what each of their choices gave, in order."""
    row, lane = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
    query, mine = row // group, row % group  # of all units
    acc = tl.zeros([ROWS, D], tl.float32)
    for slot in range(reads):
        name = tl.load(index + query * reads + slot, mask=row < rows, other=-1)
        there = ((name >= 0) & (name < blocks))[:, None] & (lane < dim)[None, :]
        for part in range(times):
            here = (((query * reads + slot) * times + part) * group + mine)[:, None] * dim + lane[None, :]
            acc += tl.load(parts + here, mask=there, other=0.0).to(tl.float32)
    place = (query // queries * group + mine) * queries + query % queries
    mask = (row < rows)[:, None] & (lane < dim)[None, :]
    tl.store(dq + place[:, None] * dim + lane[None, :], (acc * scale).to(dq.dtype.element_ty), mask=mask)
