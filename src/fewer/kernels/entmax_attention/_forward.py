"""entmax_attention with Triton, the way there: the largest score, Newton's steps to the threshold, the sum; each a pass over tiles of keys.

With z = (alpha - 1) s and r = 1 / (alpha - 1), the r-norm of max(z - tau, 0) is 1 at the threshold. It is convex in tau for alpha up to 2, so
steps from max z - 1 never pass the threshold. Each pass lists the tiles in which some weight is not zero: no later pass, and
none on the way back, meets the others.
"""

import triton
import triton.language as tl

from fewer.kernels.attend_blocks._forward import LOG2E, may_read


@triton.jit
def bent(s, scale, cap, CAP: tl.constexpr):
    """scale * s, soft-capped."""
    if CAP:
        s = cap * (1 - 2 / (tl.exp2(s * (scale / cap * 2 * LOG2E)) + 1))
    else:
        s = s * scale
    return s


@triton.jit
def powers(d, alpha, HALF: tl.constexpr):
    """d^r and d^(r - 1) of what is above the threshold, else 0."""
    if HALF:  # alpha 1.5, r 2
        p, u = d * d, d
    else:
        level = tl.log2(tl.where(d > 0, d, 1.0)) / (alpha - 1)
        p = tl.where(d > 0, tl.exp2(level), 0.0)
        u = tl.where(d > 0, tl.exp2(level * (2 - alpha)), 0.0)
    return p, u


@triton.jit
def rows_of(x, place, real, dim, D: tl.constexpr):
    lane = tl.arange(0, D)
    return tl.load(x + place[:, None] * dim + lane[None, :], mask=real[:, None] & (lane < dim)[None, :], other=0.0)


@triton.jit
def columns_of(x, col, keys, dim, D: tl.constexpr):
    lane = tl.arange(0, D)
    here = x + col.to(tl.int64)[:, None] * dim + lane[None, :]
    return tl.load(here, mask=(col < keys)[:, None] & (lane < dim)[None, :], other=0.0)


@triton.jit
def _over(
    q, k, at, now, alpha, tau, start, keys, dim, scale, window, cap,
    COLS: tl.constexpr, D: tl.constexpr, CAP: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """z - tau of one tile, -inf where nothing may be read."""
    col = start + tl.arange(0, COLS)
    s = tl.dot(q, tl.trans(columns_of(k, col, keys, dim, D)), input_precision=EXACT)
    z = bent(s, scale, cap, CAP) * (alpha - 1) - tau[:, None]
    return tl.where(may_read(at, now, col, keys, window), z, float("-inf"))


@triton.jit
def _step(
    q, k, at, now, alpha, tau, list_, begin, count, keys, dim, scale, window, cap,
    COLS: tl.constexpr, D: tl.constexpr, CAP: tl.constexpr, HALF: tl.constexpr, EXACT: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """One of Newton's steps for each query; the list becomes that of tiles that matter, and how many they are."""
    total, slope, left = tl.zeros_like(tau), tl.zeros_like(tau), count * 0
    for i in range(count):
        j = begin + i
        if LISTED:
            j = tl.load(list_ + i)
        d = tl.maximum(
            _over(q, k, at, now, alpha, tau, j * COLS, keys, dim, scale, window, cap, COLS, D, CAP, EXACT), 0.0
        )
        p, u = powers(d, alpha, HALF)
        total, slope = total + tl.sum(p, 1), slope + tl.sum(u, 1)
        tl.store(list_ + left, j)
        left += (tl.max(tl.max(d, 1), 0) > 0).to(tl.int32)
    tl.debug_barrier()
    if HALF:
        root = tl.sqrt(total)
    else:
        root = tl.where(total > 0, tl.exp2(tl.log2(tl.where(total > 0, total, 1.0)) * (2 - alpha)), 0.0)
    by = (total - root) / tl.where(slope > 0, slope, 1.0)
    return tl.where(slope > 0, tl.maximum(by, 0.0), 0.0), left


@triton.jit
def forward(
    q, k, v, at, now, alphas, span, out, taus, counts, lists,
    heads, group, queries, keys, dim, out_dim, cols, scale, window, cap, near, steps,
    ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CAP: tl.constexpr, HALF: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head. The last queries, which read the most, go first."""
    tile, above = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    batch, head = above // heads, above % heads
    unit, row = above // group, tile * ROWS + tl.arange(0, ROWS)
    real, alpha = row < queries, tl.load(alphas + head)
    x = rows_of(q, above * queries + row, real, dim, D)
    last = tl.load(now + batch * queries + row, mask=real, other=-1)
    k, v, at = k + unit * keys * dim, v + unit * keys * out_dim, at + unit * keys
    here = above * tl.num_programs(0) + tile
    begin = tl.load(span + (unit * tl.num_programs(0) + tile) * 2)
    end = tl.load(span + (unit * tl.num_programs(0) + tile) * 2 + 1)
    list_, high, none = lists + here * cols, tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    for j in range(begin, end):
        z = _over(x, k, at, last, alpha, none, j * COLS, keys, dim, scale, window, cap, COLS, D, CAP, EXACT)
        high = tl.maximum(high, tl.max(z, 1))
    tau = tl.where(high == float("-inf"), float("inf"), high - 1)
    by, left = _step(
        x, k, at, last, alpha, tau, list_, begin, tl.maximum(end - begin, 0), keys, dim, scale, window, cap,
        COLS, D, CAP, HALF, EXACT, False,
    )  # fmt: skip
    tau, moved, turn = tau + by, tl.max(by, 0), 1
    while (moved > near) & (turn < steps):
        by, left = _step(
            x, k, at, last, alpha, tau, list_, begin, left, keys, dim, scale, window, cap, COLS, D, CAP, HALF, EXACT, True
        )  # fmt: skip
        tau, moved, turn = tau + by, tl.max(by, 0), turn + 1
    acc, total = tl.zeros([ROWS, E], tl.float32), tl.zeros([ROWS], tl.float32)
    for i in range(left):
        start = tl.load(list_ + i) * COLS
        d = _over(x, k, at, last, alpha, tau, start, keys, dim, scale, window, cap, COLS, D, CAP, EXACT)
        p, _ = powers(tl.maximum(d, 0.0), alpha, HALF)
        there = columns_of(v, start + tl.arange(0, COLS), keys, out_dim, E)
        acc, total = tl.dot(p.to(there.dtype), there, acc, input_precision=EXACT), total + tl.sum(p, 1)
    tl.store(counts + here, left)
    tl.store(taus + above * queries + row, tau, mask=real)
    acc, wide = acc / tl.where(total == 0, 1.0, total)[:, None], tl.arange(0, E)
    to = out + (above * queries + row)[:, None] * out_dim + wide[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=real[:, None] & (wide < out_dim)[None, :])
