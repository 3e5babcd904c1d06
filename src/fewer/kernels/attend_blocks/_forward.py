"""attend_blocks with Triton, the way there: a tile of queries goes through its row of blocks once, softmax on the way.

A tile is `ROWS` queries of `PACK` heads that read the same blocks of the same keys: row r is query r // PACK of head r % PACK.
So blocks of few queries still fill a tile, and keys are read once for a group.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def columns(
    x, row, start, keys, step, dim, COLS: tl.constexpr, D: tl.constexpr, INSIDE: tl.constexpr, TMA: tl.constexpr
):
    """COLS keys (or values) from `start` on, zeros beyond the last; `x` is a pointer, or describes a matrix where they begin at `row`."""
    if TMA:
        out = x.load([row + start, 0])
    else:
        col, lane = start + tl.arange(0, COLS), tl.arange(0, D)
        here = x + col.to(tl.int64)[:, None] * step + lane[None, :]
        if INSIDE:
            out = tl.load(here)
        else:
            out = tl.load(here, mask=(col < keys)[:, None] & (lane < dim)[None, :], other=0.0)
    return out


@triton.jit
def tile_of(tile, unit, queries, heads, SHARE: tl.constexpr, PACK: tl.constexpr, TALL: tl.constexpr):
    """Of each row of a tile: its query, its head, whether they exist. TALL = ROWS * PACK."""
    row = tl.arange(0, TALL)
    query, mine = tile * (TALL // PACK) + row // PACK, row % PACK
    return query, unit * SHARE + mine, (query < queries) & (mine < SHARE)


@triton.jit
def row_of(blocks, batch, unit, tile, list_batch, list_heads, units, high, tall):
    """Which row of the block matrix a tile of `tall` queries reads; there are `blocks` rows for each head."""
    head = unit * list_heads // units  # lists for 1 head, for each key-value head, or for each
    return ((batch % list_batch) * list_heads + head).to(tl.int64) * blocks + tile * tall // high


@triton.jit
def may_read(at, now, col, keys, window):
    """[rows, cols]: who may read which key of a block that is read in part."""
    place = tl.load(at + col, mask=col < keys, other=-1)[None, :]
    return (place >= 0) & (place <= now[:, None]) & (place > now[:, None] - window)


@triton.jit
def bounded(s, scale, cap, CAP: tl.constexpr):
    """scale * s, soft-capped: cap tanh(x / cap), in units of log 2, as exp2 wants them."""
    if CAP:
        s = cap * (1 - 2 / (tl.exp2(s * (scale / cap * 2 * LOG2E)) + 1))
        s = s * LOG2E
    else:
        s = s * (scale * LOG2E)
    return s


@triton.jit
def _through(
    acc, high, total, q, k, v, at, now, index, count, row, keys, k_step, v_step, dim, out_dim, scale, window, cap,
    BROAD: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, MASKED: tl.constexpr,
    CAP: tl.constexpr, INSIDE: tl.constexpr, EXACT: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Go through some blocks; `high` is the largest score so far (base 2), `total` the sum of exp2."""
    parts: tl.constexpr = BROAD // COLS
    by = scale * LOG2E
    for j in range(count * parts):
        start = tl.load(index + j // parts) * BROAD + (j % parts) * COLS
        s = tl.dot(q, tl.trans(columns(k, row, start, keys, k_step, dim, COLS, D, INSIDE, TMA)), input_precision=EXACT)
        if CAP:
            s = bounded(s, scale, cap, CAP)
        col = start + tl.arange(0, COLS)
        if not INSIDE:
            s = tl.where((col < keys)[None, :], s, float("-inf"))
        if MASKED:
            s = tl.where(may_read(at, now, col, keys, window), s, float("-inf"))
        if CAP:
            new = tl.maximum(high, tl.max(s, 1))
        else:
            new = tl.maximum(high, tl.max(s, 1) * by)
        safe = new
        if MASKED or not INSIDE:
            safe = tl.where(new == float("-inf"), 0.0, new)  # nothing to read yet
        if CAP:
            p = tl.exp2(s - safe[:, None])
        else:
            p = tl.exp2(s * by - safe[:, None])
        fade = tl.exp2(high - safe)
        total = total * fade + tl.sum(p, 1)
        there = columns(v, row, start, keys, v_step, out_dim, COLS, E, INSIDE, TMA)
        acc = tl.dot(p.to(there.dtype), there, acc * fade[:, None], input_precision=EXACT)
        high = new
    return acc, high, total


@triton.jit
def forward(
    q, k, v, at, now, some_count, some_index, full_count, full_index, out, lse,
    q_batch, q_head, q_step, k_batch, k_head, k_step, v_batch, v_head, v_step,
    heads, kv_heads, queries, keys, dim, out_dim, rows, cols, list_batch, list_heads, scale, window, cap,
    HIGH: tl.constexpr, BROAD: tl.constexpr, SHARE: tl.constexpr, PACK: tl.constexpr, TALL: tl.constexpr,
    COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CAP: tl.constexpr, INSIDE: tl.constexpr, EXACT: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one unit of heads. The last queries, which read the most, go first."""
    tile, units = tl.num_programs(0) - 1 - tl.program_id(0), heads // SHARE
    batch, unit = tl.program_id(1) // units, tl.program_id(1) % units
    query, head, real = tile_of(tile, unit, queries, heads, SHARE, PACK, TALL)
    kv, lane = (unit * SHARE * kv_heads // heads).to(tl.int64), tl.arange(0, D)
    here = q + batch.to(tl.int64) * q_batch + head.to(tl.int64)[:, None] * q_head + query.to(tl.int64)[:, None] * q_step
    mine = tl.load(here + lane[None, :], mask=real[:, None] & (lane < dim)[None, :], other=0.0)
    last = tl.load(now + batch * queries + query, mask=real, other=-1)
    if not TMA:
        k += batch.to(tl.int64) * k_batch + kv * k_head
        v += batch.to(tl.int64) * v_batch + kv * v_head
    first = ((batch * kv_heads + kv) * keys).to(tl.int32)
    at += (batch * kv_heads + kv) * keys
    row = row_of(rows, batch, unit, tile, list_batch, list_heads, units, HIGH, TALL // PACK)
    full, some = tl.load(full_count + row), tl.load(some_count + row)
    acc, total = tl.zeros([TALL, E], tl.float32), tl.zeros([TALL], tl.float32)
    high = tl.full([TALL], float("-inf"), tl.float32)
    acc, high, total = _through(
        acc, high, total, mine, k, v, at, last, full_index + row * cols, full, first, keys, k_step, v_step,
        dim, out_dim, scale, window, cap, BROAD, COLS, D, E, False, CAP, INSIDE, EXACT, TMA,
    )  # fmt: skip
    acc, high, total = _through(
        acc, high, total, mine, k, v, at, last, some_index + row * cols, some, first, keys, k_step, v_step,
        dim, out_dim, scale, window, cap, BROAD, COLS, D, E, True, CAP, INSIDE, EXACT, TMA,
    )  # fmt: skip
    none = total == 0
    place = (batch * heads + head).to(tl.int64) * queries + query
    tl.store(lse + place, tl.where(none, float("-inf"), (high + tl.log2(tl.where(none, 1.0, total))) * LN2), mask=real)
    acc = acc / tl.where(none, 1.0, total)[:, None]
    lane = tl.arange(0, E)
    where = out + place[:, None] * out_dim + lane[None, :]
    tl.store(where, acc.to(out.dtype.element_ty), mask=real[:, None] & (lane < out_dim)[None, :])
