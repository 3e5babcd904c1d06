"""The Triton kernels of sparse_linear. A program owns some rows, or a share of their columns, and writes nothing else.

With one token, products are summed lane by lane and added up at the end; with more, `x` comes permuted, padded to a
power of two tokens, and tensor cores multiply. `out` is [shares, batch, rows].
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
def _add(acc, w, x, group, inside, groups, j, M: tl.constexpr, cols, B: tl.constexpr):
    """Add what weights w [rows, lanes] in place `j` of their groups of M contribute."""
    if B == 1:
        xj = tl.load(x + group * M + j, mask=inside & (group * M + j < cols), other=0.0)
        return acc + w.to(tl.float32) * xj.to(tl.float32)[None, :]
    else:
        b = tl.arange(0, B)
        xj = tl.load(x + (j * groups + group)[:, None] * B + b[None, :], mask=inside[:, None], other=0.0)
        return tl.dot(w.to(xj.dtype), xj, acc, input_precision="ieee")


@triton.jit(do_not_specialize=["batch"])
def bitmask(
    x, value, mask, start, bias, out, rows, cols, groups, batch, span,
    ROWS: tl.constexpr, LANES: tl.constexpr, B: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Bitmask: a lane walks the eight bits of its byte; where its values begin is counted from the bytes before it."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, lane = row < rows, tl.arange(0, LANES)
    first = tl.minimum(tl.program_id(1) * span, groups)
    last = tl.minimum(first + span, groups)
    base = tl.load(start + row, mask=inside, other=0).to(tl.int64)
    for at in range(0, first, LANES):
        here = at + lane
        ok = inside[:, None] & (here < first)[None, :]
        n = tl.load(mask + row[:, None] * groups + here[None, :], mask=ok, other=0).to(tl.int32)
        n = n - ((n >> 1) & 0x55)
        n = (n & 0x33) + ((n >> 2) & 0x33)
        base += tl.sum((n + (n >> 4)) & 0x0F, 1)
    acc = tl.zeros([ROWS, LANES if B == 1 else B], tl.float32)
    for at in range(first, last, LANES):
        here = at + lane
        ok = inside[:, None] & (here < last)[None, :]
        byte = tl.load(mask + row[:, None] * groups + here[None, :], mask=ok, other=0).to(tl.int32)
        n = byte - ((byte >> 1) & 0x55)
        n = (n & 0x33) + ((n >> 2) & 0x33)
        n = (n + (n >> 4)) & 0x0F
        next_value = (value + base)[:, None] + (tl.cumsum(n, 1) - n)
        base += tl.sum(n, 1)
        for j in tl.static_range(8):
            bit = (byte >> j) & 1
            w = tl.load(next_value, mask=bit != 0, other=0.0)
            next_value += bit
            acc = _add(acc, w, x, here, here < last, groups, j, 8, cols, B)
    _finish(acc, bias, out, row, rows, batch, B, BIAS)


@triton.jit(do_not_specialize=["batch"])
def nm(
    x, value, place, bias, out, rows, cols, groups, place_bytes, batch, span,
    N: tl.constexpr, M: tl.constexpr, BITS: tl.constexpr, PAIRS: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, B: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """N:M: a lane is a group; each of its M columns takes the value whose place it is. PAIRS are read as one word."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, lane = row < rows, tl.arange(0, LANES)
    first = tl.minimum(tl.program_id(1) * span, groups)
    last = tl.minimum(first + span, groups)
    kind: tl.constexpr = value.dtype.element_ty
    acc = tl.zeros([ROWS, LANES if B == 1 else B], tl.float32)
    for at in range(first, last, LANES):
        here = at + lane
        ok = inside[:, None] & (here < last)[None, :]
        slot = row[:, None] * (groups * N) + here[None, :] * N
        if PAIRS:
            pair = tl.load(value.to(tl.pointer_type(tl.int32)) + slot // 2, mask=ok, other=0)
        for j in tl.static_range(M):
            w = tl.zeros([ROWS, LANES], tl.float32)
            for i in tl.static_range(N):
                bit = (here * N + i) * BITS
                byte = place + row[:, None] * place_bytes + (bit >> 3)[None, :]
                p = tl.load(byte, mask=ok, other=0).to(tl.int32)
                if 8 % BITS != 0:  # a place may lie across two bytes
                    more = ok & ((bit >> 3) + 1 < place_bytes)[None, :]
                    p |= tl.load(byte + 1, mask=more, other=0).to(tl.int32) << 8
                p = (p >> (bit & 7)[None, :]) & ((1 << BITS) - 1)
                if PAIRS:
                    v = ((pair >> (16 * i)) & 0xFFFF).to(tl.int16).to(kind, bitcast=True)
                else:
                    v = tl.load(value + slot + i, mask=ok, other=0.0)
                w = tl.where(p == j, v.to(tl.float32), w)
            acc = _add(acc, w, x, here, here < last, groups, j, M, cols, B)
    _finish(acc, bias, out, row, rows, batch, B, BIAS)


@triton.jit(do_not_specialize=["batch"])
def gathered(
    x, value, column, start, bias, out, rows, batch,
    H: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, SHARES: tl.constexpr,
    B: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Tiles, Bsr and Csr (blocks of H x 1, H x W and 1 x 1): a lane is a column of a block and gathers its input."""
    block, i = tl.program_id(0).to(tl.int64), tl.arange(0, ROWS)
    begin, end = tl.load(start + block).to(tl.int64), tl.load(start + block + 1).to(tl.int64)
    share = tl.cdiv(end - begin, SHARES)
    first = begin + tl.program_id(1) * share
    last = tl.minimum(first + share, end) * W
    acc = tl.zeros([ROWS, LANES if B == 1 else B], tl.float32)
    for at in range(first * W, last, LANES):
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
