"""attend_blocks with Triton, the way back: by rows of blocks for the queries, by their columns for keys and values.

With p = exp(score - lse), dp = dout v^T and ds = p (dp - (dout . out - dlse)): dv = p^T dout, dk = scale ds^T q, dq = scale ds k.
What a program adds up it alone writes, so that the result is the same at every run.
"""

import triton
import triton.language as tl

from ._forward import LOG2E, bounded, columns, may_read, row_of, tile_of


@triton.jit
def inner(out, given, lse_given, delta, rows, out_dim, TALL: tl.constexpr, E: tl.constexpr):
    """dout . out - dlse of each row."""
    row, lane = tl.program_id(0) * TALL + tl.arange(0, TALL), tl.arange(0, E)
    here, inside = (
        row.to(tl.int64)[:, None] * out_dim + lane[None, :],
        (row < rows)[:, None] & (lane < out_dim)[None, :],
    )
    a = tl.load(out + here, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(given + here, mask=inside, other=0.0).to(tl.float32)
    less = tl.load(lse_given + row, mask=row < rows, other=0.0)
    tl.store(delta + row, tl.sum(a * b, 1) - less, mask=row < rows)


@triton.jit
def slope(s, dp, lse, delta, may, scale, cap, MASKED: tl.constexpr, CAP: tl.constexpr):
    """p, and the gradient of the products q.k but for `scale`; lse and delta have the shape that spreads over s."""
    s = bounded(s, scale, cap, CAP)
    p = tl.exp2(s - lse)
    if MASKED:
        p = tl.where(may, p, 0.0)
    ds = p * (dp - delta)
    if CAP:
        bent = s / (cap * LOG2E)
        ds = ds * (1 - bent * bent)
    return p, ds


@triton.jit
def _by_rows(
    acc, q, given, lse, delta, k, v, at, now, index, count, row, keys, k_step, v_step,
    dim, out_dim, scale, window, cap,
    BROAD: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, MASKED: tl.constexpr,
    CAP: tl.constexpr, INSIDE: tl.constexpr, EXACT: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    parts: tl.constexpr = BROAD // COLS
    for j in range(count * parts):
        start = tl.load(index + j // parts) * BROAD + (j % parts) * COLS
        here = columns(k, row, start, keys, k_step, dim, COLS, D, INSIDE, TMA)
        there = columns(v, row, start, keys, v_step, out_dim, COLS, E, INSIDE, TMA)
        s = tl.dot(q, tl.trans(here), input_precision=EXACT)
        dp = tl.dot(given, tl.trans(there), input_precision=EXACT)
        col = start + tl.arange(0, COLS)
        may = (col < keys)[None, :]
        if MASKED:
            may = may_read(at, now, col, keys, window)
        _, ds = slope(s, dp, lse[:, None], delta[:, None], may, scale, cap, MASKED or not INSIDE, CAP)
        acc = tl.dot(ds.to(here.dtype), here, acc, input_precision=EXACT)
    return acc


@triton.jit
def for_queries(
    q, k, v, at, now, some_count, some_index, full_count, full_index, given, lse, delta, dq,
    q_batch, q_head, q_step, k_batch, k_head, k_step, v_batch, v_head, v_step,
    heads, kv_heads, queries, keys, dim, out_dim, rows, cols, list_batch, list_heads, scale, window, cap,
    HIGH: tl.constexpr, BROAD: tl.constexpr, SHARE: tl.constexpr, PACK: tl.constexpr, TALL: tl.constexpr,
    COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CAP: tl.constexpr, INSIDE: tl.constexpr, EXACT: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """dq of one tile, as `forward` goes."""
    tile, units = tl.num_programs(0) - 1 - tl.program_id(0), heads // SHARE
    batch, unit = tl.program_id(1) // units, tl.program_id(1) % units
    query, head, real = tile_of(tile, unit, queries, heads, SHARE, PACK, TALL)
    kv, lane, wide = (unit * SHARE * kv_heads // heads).to(tl.int64), tl.arange(0, D), tl.arange(0, E)
    here = q + batch.to(tl.int64) * q_batch + head.to(tl.int64)[:, None] * q_head + query.to(tl.int64)[:, None] * q_step
    mine = tl.load(here + lane[None, :], mask=real[:, None] & (lane < dim)[None, :], other=0.0)
    place = (batch * heads + head).to(tl.int64) * queries + query
    theirs = tl.load(
        given + place[:, None] * out_dim + wide[None, :], mask=real[:, None] & (wide < out_dim)[None, :], other=0.0
    )
    last = tl.load(now + batch * queries + query, mask=real, other=-1)
    level = tl.load(lse + place, mask=real, other=float("inf")) * LOG2E
    level = tl.where(level == float("-inf"), float("inf"), level)  # who read nothing gives nothing
    less = tl.load(delta + place, mask=real, other=0.0)
    if not TMA:
        k += batch.to(tl.int64) * k_batch + kv * k_head
        v += batch.to(tl.int64) * v_batch + kv * v_head
    first = ((batch * kv_heads + kv) * keys).to(tl.int32)
    at += (batch * kv_heads + kv) * keys
    row = row_of(rows, batch, unit, tile, list_batch, list_heads, units, HIGH, TALL // PACK)
    full, some, acc = tl.load(full_count + row), tl.load(some_count + row), tl.zeros([TALL, D], tl.float32)
    acc = _by_rows(
        acc, mine, theirs, level, less, k, v, at, last, full_index + row * cols, full, first, keys,
        k_step, v_step, dim, out_dim, scale, window, cap, BROAD, COLS, D, E, False, CAP, INSIDE, EXACT, TMA,
    )  # fmt: skip
    acc = _by_rows(
        acc, mine, theirs, level, less, k, v, at, last, some_index + row * cols, some, first, keys,
        k_step, v_step, dim, out_dim, scale, window, cap, BROAD, COLS, D, E, True, CAP, INSIDE, EXACT, TMA,
    )  # fmt: skip
    where = dq + place[:, None] * dim + lane[None, :]
    tl.store(where, (acc * scale).to(dq.dtype.element_ty), mask=real[:, None] & (lane < dim)[None, :])


@triton.jit
def _by_columns(
    dk, dv, k, v, place, col, q, given, lse, delta, now, index, count, unit, above, queries, keys, q_head, q_step,
    dim, out_dim, scale, window, cap,
    HIGH: tl.constexpr, SHARE: tl.constexpr, PACK: tl.constexpr, TALL: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    MASKED: tl.constexpr, CAP: tl.constexpr, INSIDE: tl.constexpr, EXACT: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Go through the tiles of queries that one list of a column names. Scores lie here as [keys, queries]."""
    rows: tl.constexpr = TALL // PACK
    parts: tl.constexpr = HIGH // rows
    lane, wide = tl.arange(0, D), tl.arange(0, E)
    for j in range(count * parts):
        tile = tl.load(index + j // parts) * parts + j % parts
        row = tl.arange(0, TALL)
        query, mine = tile * rows + row // PACK, row % PACK
        real = (query < queries) & (mine < SHARE)
        head = unit * SHARE + mine
        at = head.to(tl.int64) * queries + query
        if TMA:  # one head's queries, all of them real
            theirs, wanted = q.load([above + tile * rows, 0]), given.load([above + tile * rows, 0])
        else:
            here = q + head.to(tl.int64)[:, None] * q_head + query.to(tl.int64)[:, None] * q_step + lane[None, :]
            theirs = tl.load(here, mask=real[:, None] & (lane < dim)[None, :], other=0.0)
            here = given + at[:, None] * out_dim + wide[None, :]
            wanted = tl.load(here, mask=real[:, None] & (wide < out_dim)[None, :], other=0.0)
        level = tl.load(lse + at, mask=real, other=float("inf")) * LOG2E
        level = tl.where(level == float("-inf"), float("inf"), level)
        less = tl.load(delta + at, mask=real, other=0.0)
        s = tl.dot(k, tl.trans(theirs), input_precision=EXACT)
        dp = tl.dot(v, tl.trans(wanted), input_precision=EXACT)
        may = (col < keys)[:, None]
        if MASKED:
            last = tl.load(now + query, mask=real, other=-1)[None, :]
            may = (place[:, None] >= 0) & (place[:, None] <= last) & (place[:, None] > last - window)
        p, ds = slope(s, dp, level[None, :], less[None, :], may, scale, cap, MASKED or not INSIDE, CAP)
        dv = tl.dot(p.to(wanted.dtype), wanted, dv, input_precision=EXACT)
        dk = tl.dot(ds.to(theirs.dtype), theirs, dk, input_precision=EXACT)
    return dk, dv


@triton.jit
def for_keys(
    q, k, v, at, now, some_count, some_index, full_count, full_index, given, lse, delta, dk, dv,
    q_batch, q_head, q_step, k_batch, k_head, k_step, v_batch, v_head, v_step,
    heads, kv_heads, queries, keys, dim, out_dim, rows, cols, list_batch, list_heads, scale, window, cap,
    HIGH: tl.constexpr, BROAD: tl.constexpr, SHARE: tl.constexpr, PACK: tl.constexpr, TALL: tl.constexpr,
    COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CAP: tl.constexpr, INSIDE: tl.constexpr, EXACT: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys, over all heads that share it; the lists are those of the columns."""
    tile, batch, kv = tl.program_id(0), tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    start, units = tile * COLS, heads // SHARE
    k += batch.to(tl.int64) * k_batch + kv.to(tl.int64) * k_head
    v += batch.to(tl.int64) * v_batch + kv.to(tl.int64) * v_head
    mine = columns(k, 0, start, keys, k_step, dim, COLS, D, INSIDE, False)
    own = columns(v, 0, start, keys, v_step, out_dim, COLS, E, INSIDE, False)
    col, each = start + tl.arange(0, COLS), units // kv_heads
    place = tl.load(at + (batch * kv_heads + kv).to(tl.int64) * keys + col, mask=col < keys, other=-1)
    first = (batch * heads).to(tl.int64) * queries  # of this batch
    lse, delta, now = lse + first, delta + first, now + batch * queries
    if not TMA:
        q, given = q + batch.to(tl.int64) * q_batch, given + first * out_dim
    to_k, to_v = tl.zeros([COLS, D], tl.float32), tl.zeros([COLS, E], tl.float32)
    for unit in range(kv * each, kv * each + each):
        row, above = (
            row_of(cols, batch, unit, tile, list_batch, list_heads, units, BROAD, COLS),
            (batch * heads + unit) * queries,
        )
        to_k, to_v = _by_columns(
            to_k, to_v, mine, own, place, col, q, given, lse, delta, now, full_index + row * rows,
            tl.load(full_count + row), unit, above, queries, keys, q_head, q_step, dim, out_dim, scale, window, cap,
            HIGH, SHARE, PACK, TALL, D, E, False, CAP, INSIDE, EXACT, TMA,
        )  # fmt: skip
        to_k, to_v = _by_columns(
            to_k, to_v, mine, own, place, col, q, given, lse, delta, now, some_index + row * rows,
            tl.load(some_count + row), unit, above, queries, keys, q_head, q_step, dim, out_dim, scale, window, cap,
            HIGH, SHARE, PACK, TALL, D, E, True, CAP, INSIDE, EXACT, TMA,
        )  # fmt: skip
    where, inside = ((batch * kv_heads + kv).to(tl.int64) * keys + col)[:, None], (col < keys)[:, None]
    lane, wide = tl.arange(0, D), tl.arange(0, E)
    to_k = (to_k * scale).to(dk.dtype.element_ty)
    tl.store(dk + where * dim + lane[None, :], to_k, mask=inside & (lane < dim)[None, :])
    tl.store(
        dv + where * out_dim + wide[None, :], to_v.to(dv.dtype.element_ty), mask=inside & (wide < out_dim)[None, :]
    )
