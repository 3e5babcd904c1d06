"""The Triton kernels of sparse_linear. A program owns some rows, or a share of their columns, and writes nothing else.

With one token, products are summed lane by lane and added up at the end; with more, weights are unpacked in registers
and tensor cores multiply. `out` is [shares, batch, rows]. What bounds each kernel: bench/kernels/README.md.
"""

import triton
import triton.language as tl


@triton.jit
def _finish(acc, bias, out, row, rows, batch, B: tl.constexpr, BIAS: tl.constexpr):
    """Store [rows, lanes] summed over its lanes, or [rows, B], with the bias where there is one share only."""
    inside = row < rows
    at = out + tl.program_id(1).to(tl.int64) * batch * rows
    if B == 1:
        total = tl.sum(acc, 1)
        if BIAS:
            total += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
        tl.store(at + row, total.to(out.dtype.element_ty), mask=inside)
    else:
        if BIAS:
            acc += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[:, None]
        b = tl.arange(0, B)
        here = at + b[None, :].to(tl.int64) * rows + row[:, None]
        tl.store(here, acc.to(out.dtype.element_ty), mask=inside[:, None] & (b < batch)[None, :])


@triton.jit
def _lanes(LANES: tl.constexpr):
    """Lanes that threads take one by one: were neighbours read together, every load would have a layout of its own.

    For the same reason lanes are the first axis, which Triton gives to the threads where nothing is contiguous.
    """
    return tl.max_contiguous(tl.arange(0, LANES), 1)


@triton.jit
def _input(x, at, last, j: tl.constexpr, LANES: tl.constexpr):
    """Column j of each byte of columns from byte `at` on, [lanes, 1]."""
    col = (at + _lanes(LANES))[:, None] * 8 + j
    return tl.load(x + col, mask=col < last, other=0.0).to(tl.float32)


@triton.jit
def _inputs(x, at, cols, LANES: tl.constexpr):
    x0, x1 = _input(x, at, cols, 0, LANES), _input(x, at, cols, 1, LANES)
    x2, x3 = _input(x, at, cols, 2, LANES), _input(x, at, cols, 3, LANES)
    x4, x5 = _input(x, at, cols, 4, LANES), _input(x, at, cols, 5, LANES)
    return x0, x1, x2, x3, x4, x5, _input(x, at, cols, 6, LANES), _input(x, at, cols, 7, LANES)


@triton.jit
def _multiply(acc, w0, w1, w2, w3, w4, w5, w6, w7, x, at, cols, batch, B: tl.constexpr):
    """Add the product of eight neighbouring columns of each lane, w0 to w7 [lanes, rows], on tensor cores."""
    even = tl.join(tl.join(w0, w4), tl.join(w2, w6))
    odd = tl.join(tl.join(w1, w5), tl.join(w3, w7))
    K: tl.constexpr = w0.shape[0] * 8
    w = tl.permute(tl.reshape(tl.join(even, odd), [w0.shape[0], w0.shape[1], 8]), (0, 2, 1))
    w = tl.trans(tl.reshape(w, [K, w0.shape[1]]))
    col, b = at * 8 + tl.arange(0, K), tl.arange(0, B)
    inside = (b < batch)[:, None] & (col < cols)[None, :]
    xs = tl.load(x + b.to(tl.int64)[:, None] * cols + col[None, :], mask=inside, other=0.0)
    return tl.dot(w.to(xs.dtype), tl.trans(xs), acc, input_precision="ieee")


@triton.jit
def _load(of, row, rows, at, groups, LANES: tl.constexpr):
    """An element of [rows, groups] for each lane and row, from group `at` on."""
    here = at + _lanes(LANES)
    ok = (row < rows)[None, :] & (here < groups)[:, None]
    return tl.load(of + row[None, :] * groups + here[:, None], mask=ok, other=0)


@triton.jit
def _ones(low, high):
    """How many bits of two bytes are set, one count in each half of the word."""
    n = low | (high << 16)
    n = n - ((n >> 1) & 0x00550055)
    n = (n & 0x00330033) + ((n >> 2) & 0x00330033)
    return (n + (n >> 4)) & 0x000F000F


@triton.jit
def _bit(value, byte, j: tl.constexpr):
    """The weight at bit `j`, and where the next one lies."""
    bit = (byte >> j) & 1
    return tl.load(value, mask=bit != 0, other=0.0), value + bit


@triton.jit
def _walk(acc, value, byte, xs, x, at, cols, batch, B: tl.constexpr):
    """Add what the eight columns of each byte contribute."""
    w0, value = _bit(value, byte, 0)
    w1, value = _bit(value, byte, 1)
    w2, value = _bit(value, byte, 2)
    w3, value = _bit(value, byte, 3)
    w4, value = _bit(value, byte, 4)
    w5, value = _bit(value, byte, 5)
    w6, value = _bit(value, byte, 6)
    w7, value = _bit(value, byte, 7)
    if B == 1:
        acc += w0.to(tl.float32) * xs[0]
        acc += w1.to(tl.float32) * xs[1]
        acc += w2.to(tl.float32) * xs[2]
        acc += w3.to(tl.float32) * xs[3]
        acc += w4.to(tl.float32) * xs[4]
        acc += w5.to(tl.float32) * xs[5]
        acc += w6.to(tl.float32) * xs[6]
        return acc + w7.to(tl.float32) * xs[7]
    else:
        return _multiply(acc, w0, w1, w2, w3, w4, w5, w6, w7, x, at, cols, batch, B)


@triton.jit(do_not_specialize=["batch"])
def bitmask(
    x, value, mask, start, bias, out, rows, cols, groups, batch,
    ROWS: tl.constexpr, LANES: tl.constexpr, B: tl.constexpr, BIAS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Bitmask: a lane walks the eight bits of its byte; where its values begin is counted from the bytes before it.

    Two halves of ROWS rows each, so that one word counts for two rows.
    """
    a = tl.program_id(0).to(tl.int64) * (2 * ROWS) + tl.arange(0, ROWS)
    b = a + ROWS
    va = value + tl.load(start + a, mask=a < rows, other=0).to(tl.int64)
    vb = value + tl.load(start + b, mask=b < rows, other=0).to(tl.int64)
    acc_a = tl.zeros([LANES, ROWS] if B == 1 else [ROWS, B], tl.float32)
    acc_b = tl.zeros([LANES, ROWS] if B == 1 else [ROWS, B], tl.float32)
    low = _load(mask, a, rows, 0, groups, LANES).to(tl.int32)
    high = _load(mask, b, rows, 0, groups, LANES).to(tl.int32)
    for at in tl.range(0, groups, LANES, num_stages=STAGES):
        n = _ones(low, high)
        before = tl.cumsum(n, 0) - n
        total = tl.sum(n, 0)
        xs = _inputs(x, at, cols, LANES) if B == 1 else 0
        pa, pb = va[None, :] + (before & 0xFFFF), vb[None, :] + (before >> 16)
        this, that = low, high
        low = _load(mask, a, rows, at + LANES, groups, LANES).to(tl.int32)
        high = _load(mask, b, rows, at + LANES, groups, LANES).to(tl.int32)
        acc_a = _walk(acc_a, pa, this, xs, x, at, cols, batch, B)
        acc_b = _walk(acc_b, pb, that, xs, x, at, cols, batch, B)
        va, vb = va + (total & 0xFFFF), vb + (total >> 16)
    _finish(tl.trans(acc_a) if B == 1 else acc_a, bias, out, a, rows, batch, B, BIAS)
    _finish(tl.trans(acc_b) if B == 1 else acc_b, bias, out, b, rows, batch, B, BIAS)


@triton.jit
def _half(pair, high: tl.constexpr, kind: tl.constexpr):
    return ((pair >> (16 * high)) & 0xFFFF).to(tl.int16).to(kind, bitcast=True)


@triton.jit
def _pair_times(acc, pair, code, x0, x1, x2, x3, kind: tl.constexpr):
    """Add a group of 2:4 times its four inputs. The first value is in place 0, 1 or 2; the second in place 1, 2 or 3."""
    first = tl.where((code & 2) != 0, x2, tl.where((code & 1) != 0, x1, x0))
    last = tl.where((code & 4) != 0, x3, x2)
    second = tl.where((code & 8) != 0, last, x1)
    acc += _half(pair, 0, kind).to(tl.float32) * first
    return acc + _half(pair, 1, kind).to(tl.float32) * second


@triton.jit
def _pair_spread(pair, code, kind: tl.constexpr):
    """The four weights of a group of 2:4."""
    low, high, none = pair, pair >> 16, tl.zeros_like(pair)
    p, q = code & 3, (code >> 2) & 3
    w0 = tl.where(p == 0, low, none)
    w1 = tl.where(p == 1, low, tl.where(q == 1, high, none))
    w2 = tl.where(p == 2, low, tl.where(q == 2, high, none))
    w3 = tl.where(q == 3, high, none)
    return _half(w0, 0, kind), _half(w1, 0, kind), _half(w2, 0, kind), _half(w3, 0, kind)


@triton.jit(do_not_specialize=["batch"])
def two_four(
    x, value, place, bias, out, rows, cols, groups, batch, span,
    ROWS: tl.constexpr, LANES: tl.constexpr, B: tl.constexpr, BIAS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """2:4 of 16-bit values: a lane is one byte of places, two groups, whose four values are one word of 64 bits."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.minimum(tl.program_id(1) * span, groups)
    last = tl.minimum(first + span, groups)
    kind: tl.constexpr = value.dtype.element_ty
    words = value.to(tl.pointer_type(tl.int64))
    acc = tl.zeros([LANES, ROWS] if B == 1 else [ROWS, B], tl.float32)
    soon = _load(words, row, rows, first, groups, LANES)
    code_soon = _load(place, row, rows, first, groups, LANES)
    for at in tl.range(first, last, LANES, num_stages=STAGES):
        four, code = soon, code_soon.to(tl.int32)
        soon = _load(words, row, rows, at + LANES, groups, LANES)
        code_soon = _load(place, row, rows, at + LANES, groups, LANES)
        left, right = four.to(tl.int32), (four >> 32).to(tl.int32)
        if B == 1:
            x0, x1, x2, x3, x4, x5, x6, x7 = _inputs(x, at, cols, LANES)
            acc = _pair_times(acc, left, code, x0, x1, x2, x3, kind)
            acc = _pair_times(acc, right, code >> 4, x4, x5, x6, x7, kind)
        else:
            w0, w1, w2, w3 = _pair_spread(left, code, kind)
            w4, w5, w6, w7 = _pair_spread(right, code >> 4, kind)
            acc = _multiply(acc, w0, w1, w2, w3, w4, w5, w6, w7, x, at, cols, batch, B)
    _finish(tl.trans(acc) if B == 1 else acc, bias, out, row, rows, batch, B, BIAS)


@triton.jit(do_not_specialize=["batch"])
def nm(
    x, value, place, bias, out, rows, cols, groups, place_bytes, batch, span,
    N: tl.constexpr, M: tl.constexpr, BITS: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, B: tl.constexpr, BIAS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Any N:M: a lane is a group; each of its M columns takes the value whose place it is."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, lane, b = row < rows, tl.arange(0, LANES), tl.arange(0, B)
    first = tl.minimum(tl.program_id(1) * span, groups)
    last = tl.minimum(first + span, groups)
    acc = tl.zeros([ROWS, LANES if B == 1 else B], tl.float32)
    for at in tl.range(first, last, LANES, num_stages=STAGES):
        here = at + lane
        ok = inside[:, None] & (here < last)[None, :]
        for j in tl.static_range(M):
            w = tl.zeros([ROWS, LANES], tl.float32)
            for i in tl.static_range(max(0, N - M + j), min(N, j + 1)):  # places ascend, so no other can be at j
                bit = (here * N + i) * BITS
                byte = place + row[:, None] * place_bytes + (bit >> 3)[None, :]
                p = tl.load(byte, mask=ok, other=0).to(tl.int32)
                if 8 % BITS != 0:  # a place may lie across two bytes
                    more = ok & ((bit >> 3) + 1 < place_bytes)[None, :]
                    p |= tl.load(byte + 1, mask=more, other=0).to(tl.int32) << 8
                p = (p >> (bit & 7)[None, :]) & ((1 << BITS) - 1)
                v = tl.load(
                    value + row[:, None] * (groups * N) + (here * N + i)[None, :], mask=ok & (p == j), other=0.0
                )
                w += v.to(tl.float32)
            if B == 1:
                xj = tl.load(x + here * M + j, mask=here < last, other=0.0)
                acc += w * xj.to(tl.float32)[None, :]
            else:
                of = b.to(tl.int64)[None, :] * cols + (here * M + j)[:, None]
                xj = tl.load(x + of, mask=(here < last)[:, None] & (b < batch)[None, :], other=0.0)
                acc = tl.dot(w.to(xj.dtype), xj, acc, input_precision="ieee")
    _finish(acc, bias, out, row, rows, batch, B, BIAS)


@triton.jit(do_not_specialize=["batch"])
def gathered(
    x, value, column, start, bias, out, rows, batch,
    H: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, SHARES: tl.constexpr,
    B: tl.constexpr, BIAS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Tiles and Bsr (blocks of H x 1 and H x W), Csr with one token: a lane is a column of a block, its input gathered."""
    block, i = tl.program_id(0).to(tl.int64), tl.arange(0, ROWS)
    begin, end = tl.load(start + block).to(tl.int64), tl.load(start + block + 1).to(tl.int64)
    share = tl.cdiv(end - begin, SHARES)
    first = begin + tl.program_id(1) * share
    last = tl.minimum(first + share, end) * W
    acc = tl.zeros([ROWS, LANES if B == 1 else B], tl.float32)
    for at in tl.range(first * W, last, LANES, num_stages=STAGES):
        t = at + tl.arange(0, LANES)
        ok = t < last
        source = tl.load(column + t // W, mask=ok, other=0).to(tl.int64) * W + t % W
        here = value + (t // W * (H * W) + t % W)[:, None] + (i * W)[None, :]
        real = ok[:, None] if H == ROWS else ok[:, None] & (i < H)[None, :]
        w = tl.trans(tl.load(here, mask=real, other=0.0))
        if B == 1:
            xv = tl.load(x + source, mask=ok, other=0.0)
            acc += w.to(tl.float32) * xv.to(tl.float32)[None, :]
        else:
            xv = tl.load(x + source[:, None] * B + tl.arange(0, B)[None, :], mask=ok[:, None], other=0.0)
            acc = tl.dot(w.to(xv.dtype), xv, acc, input_precision="ieee")
    row = tl.where(i < H, block * H + i, rows)
    _finish(acc, bias, out, row, rows, batch, B, BIAS)


@triton.jit(do_not_specialize=["batch"])
def csr(
    x, value, column, start, bias, out, rows, batch,
    LANES: tl.constexpr, B: tl.constexpr, BIAS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Csr with several tokens: a lane is a survivor, and multiplies its input of each; x is [cols, B]."""
    row, b = tl.program_id(0).to(tl.int64), tl.arange(0, B)
    first, last = tl.load(start + row).to(tl.int64), tl.load(start + row + 1).to(tl.int64)
    acc = tl.zeros([B, LANES], tl.float32)
    for at in tl.range(first, last, LANES, num_stages=STAGES):
        t = at + tl.arange(0, LANES)
        source = tl.load(column + t, mask=t < last, other=0).to(tl.int32)
        w = tl.load(value + t, mask=t < last, other=0.0).to(tl.float32)
        xv = tl.load(x + source.to(tl.int64)[None, :] * B + b[:, None], mask=(t < last)[None, :], other=0.0)
        acc += w[None, :] * xv.to(tl.float32)
    total = tl.sum(acc, 1)
    if BIAS:
        total += tl.load(bias + row).to(tl.float32)
    tl.store(out + b.to(tl.int64) * rows + row, total.to(out.dtype.element_ty), mask=b < batch)
