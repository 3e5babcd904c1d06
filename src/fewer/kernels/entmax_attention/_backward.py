"""entmax_attention with Triton, the way back, over the tiles that the way there listed.

With u = p^(2 - alpha) and dp = dout v^T: ds = u (dp - delta), delta the mean of dp by u. dq needs delta before it is known, so u k is summed beside
u (dp - guess) k, where the guess is dout . out, the mean of dp by p.
"""

import triton
import triton.language as tl

from fewer.kernels.attend_blocks._forward import may_read

from ._forward import bent, columns_of, powers, rows_of


@triton.jit
def _above(s, tau, alpha, may, scale, cap, CAP: tl.constexpr, HALF: tl.constexpr):
    """p, u, and how scores follow products."""
    s = bent(s, scale, cap, CAP)
    p, u = powers(tl.where(may, tl.maximum(s * (alpha - 1) - tau, 0.0), 0.0), alpha, HALF)
    if CAP:
        follows = u * (1 - s / cap * (s / cap))
    else:
        follows = u
    return p, u, follows


@triton.jit
def for_queries(
    q, k, v, at, now, alphas, taus, counts, lists, given, guess, delta, dq, dalpha,
    heads, group, queries, keys, dim, out_dim, cols, scale, window, cap,
    ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CAP: tl.constexpr, HALF: tl.constexpr,
    EXACT: tl.constexpr, ALPHA: tl.constexpr,
):  # fmt: skip
    """dq of one tile, delta, and what alpha's gradient gets from each query."""
    tile, above = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    unit, row = above // group, tile * ROWS + tl.arange(0, ROWS)
    real, alpha, place = row < queries, tl.load(alphas + above % heads), above * queries + row
    x, wanted = rows_of(q, place, real, dim, D), rows_of(given, place, real, out_dim, E)
    last = tl.load(now + above // heads * queries + row, mask=real, other=-1)
    tau, less = tl.load(taus + place, mask=real, other=float("inf")), tl.load(guess + place, mask=real, other=0.0)
    k, v, at = k + unit * keys * dim, v + unit * keys * out_dim, at + unit * keys
    here = above * tl.num_programs(0) + tile
    acc, pull = tl.zeros([ROWS, D], tl.float32), tl.zeros([ROWS, D], tl.float32)
    total, off, spread, spread_off = (
        tl.zeros([ROWS], tl.float32),
        tl.zeros([ROWS], tl.float32),
        tl.zeros([ROWS], tl.float32),
        tl.zeros([ROWS], tl.float32),
    )
    for i in range(tl.load(counts + here)):
        col = tl.load(lists + here * cols + i) * COLS + tl.arange(0, COLS)
        there, beside = columns_of(k, col, keys, dim, D), columns_of(v, col, keys, out_dim, E)
        s = tl.dot(x, tl.trans(there), input_precision=EXACT)
        dp = tl.dot(wanted, tl.trans(beside), input_precision=EXACT) - less[:, None]
        may = may_read(at, last, col, keys, window)
        p, u, follows = _above(s, tau[:, None], alpha, may, scale, cap, CAP, HALF)
        total, off = total + tl.sum(u, 1), off + tl.sum(u * dp, 1)
        if ALPHA:
            entropy = -p * tl.log(tl.where(p > 0, p, 1.0))
            spread, spread_off = spread + tl.sum(entropy, 1), spread_off + tl.sum(entropy * dp, 1)
        acc = tl.dot((follows * dp).to(there.dtype), there, acc, input_precision=EXACT)
        pull = tl.dot(follows.to(there.dtype), there, pull, input_precision=EXACT)
    more = off / tl.where(total > 0, total, 1.0)
    tl.store(delta + place, less + more, mask=real)
    if ALPHA:
        one = -more / ((alpha - 1) * (alpha - 1)) + (spread_off - more * spread) / (alpha - 1)
        tl.store(dalpha + place, one, mask=real)
    acc, lane = (acc - more[:, None] * pull) * scale, tl.arange(0, D)
    to = dq + place[:, None] * dim + lane[None, :]
    tl.store(to, acc.to(dq.dtype.element_ty), mask=real[:, None] & (lane < dim)[None, :])


@triton.jit
def for_keys(
    q, k, v, at, now, alphas, taus, counts, lists, given, delta, dk, dv,
    heads, group, queries, keys, dim, out_dim, tiles, scale, window, cap,
    ROWS: tl.constexpr, TALL: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr, E: tl.constexpr, CAP: tl.constexpr,
    HALF: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of keys over all heads that share it; the lists are those of the columns. Scores lie here as [keys, queries]."""
    tile, unit, parts = tl.program_id(0), tl.program_id(1).to(tl.int64), ROWS // TALL
    col, lane, wide = tile * COLS + tl.arange(0, COLS), tl.arange(0, D), tl.arange(0, E)
    mine, own = (
        columns_of(k + unit * keys * dim, col, keys, dim, D),
        columns_of(v + unit * keys * out_dim, col, keys, out_dim, E),
    )
    place = tl.load(at + unit * keys + col, mask=col < keys, other=-1)[:, None]
    to_k, to_v = tl.zeros([COLS, D], tl.float32), tl.zeros([COLS, E], tl.float32)
    now += unit * group // heads * queries
    for above in range(unit * group, unit * group + group):
        alpha, here = tl.load(alphas + above % heads), above * tl.num_programs(0) + tile
        for i in range(tl.load(counts + here) * parts):
            row = tl.load(lists + here * tiles + i // parts) * ROWS + i % parts * TALL + tl.arange(0, TALL)
            real, which = row < queries, above * queries + row
            theirs, wanted = rows_of(q, which, real, dim, D), rows_of(given, which, real, out_dim, E)
            tau = tl.load(taus + which, mask=real, other=float("inf"))[None, :]
            less = tl.load(delta + which, mask=real, other=0.0)[None, :]
            last = tl.load(now + row, mask=real, other=-1)[None, :]
            s = tl.dot(mine, tl.trans(theirs), input_precision=EXACT)
            dp = tl.dot(own, tl.trans(wanted), input_precision=EXACT)
            may = (place >= 0) & (place <= last) & (place > last - window)
            p, _, follows = _above(s, tau, alpha, may, scale, cap, CAP, HALF)
            to_v = tl.dot(p.to(wanted.dtype), wanted, to_v, input_precision=EXACT)
            to_k = tl.dot((follows * (dp - less)).to(theirs.dtype), theirs, to_k, input_precision=EXACT)
    where, inside = (unit * keys + col)[:, None], (col < keys)[:, None]
    to_k = (to_k * scale).to(dk.dtype.element_ty)
    tl.store(dk + where * dim + lane[None, :], to_k, mask=inside & (lane < dim)[None, :])
    to_v = to_v.to(dv.dtype.element_ty)
    tl.store(dv + where * out_dim + wide[None, :], to_v, mask=inside & (wide < out_dim)[None, :])
