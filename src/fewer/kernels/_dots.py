"""Dot products for numba, a few rows by a few tokens at once: what the loops of sparse_linear are made of.

All keep their sums in registers and read each stored weight once for all of their tokens. `rows` and `tokens` are literals.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._simd import (
    F32,
    I32,
    I64,
    accumulate,
    added,
    fetch,
    load,
    pointers,
    spread,
    stride,
    total,
    vector,
    whole,
    widened,
)

AHEAD = 1024  # bytes of a stream that are asked for before they are read


def _put(builder, outs, at, value):
    where = builder.gep(outs, [at])
    builder.store(value, builder.bitcast(where, value.type.as_pointer()), align=4)


def _plus(builder, a, k: int):
    return builder.add(a, ir.Constant(I64, k)) if k else a


@intrinsic(prefer_literal=True)
def dense_dot(typing, x, w, row, token, out, rows, tokens):
    """`out[token + t, row + r] = sum over i of x[token + t, i] * w[row + r, i]` for `rows` rows and `tokens` tokens."""
    height, batch, kind = rows.literal_value, tokens.literal_value, w.dtype
    unroll = 2 if height * batch <= 4 else 1

    def make(context, builder, signature, args):
        xs, ws, outs = pointers(context, builder, signature, args, 0, 1, 4)
        width_x, width_w, width_out = (stride(context, builder, signature, args, p) for p in (0, 1, 4))
        row, token = args[2], args[3]
        from_w = [builder.mul(_plus(builder, row, r), width_w) for r in range(height)]
        from_x = [builder.mul(_plus(builder, token, t), width_x) for t in range(batch)]
        count = cgutils.unpack_tuple(builder, context.make_array(signature.args[1])(context, builder, args[1]).shape)[1]

        def body(i, unroll=unroll, lanes=8):
            for u in range(unroll):
                at = _plus(builder, i, 8 * u)
                here = [load(builder, xs, builder.add(f, at), F32, lanes) for f in from_x]
                for f in from_w:
                    if batch == 1 and lanes == 8 and u == 0:
                        fetch(builder, ws, builder.add(f, _plus(builder, at, AHEAD * 8 // kind.bitwidth)))
                    stored = load(builder, ws, builder.add(f, at), ws.type.pointee, lanes)
                    weight = widened(builder, stored, lanes, kind)
                    yield from ((weight, v) for v in here)

        middle = whole(builder, ir.Constant(I64, 0), count, 8 * unroll)
        sums = accumulate(builder, ir.Constant(I64, 0), middle, 8 * unroll, unroll * height * batch, 8, body)
        rest = accumulate(builder, middle, count, 1, height * batch, 1, lambda i: body(i, 1, 1))
        for k in range(height * batch):
            number = total(builder, added(builder, sums[k :: height * batch]), 8)
            r, t = divmod(k, batch)
            at = builder.add(builder.mul(_plus(builder, token, t), width_out), _plus(builder, row, r))
            _put(builder, outs, at, added(builder, [number, rest[k]]))
        return context.get_dummy_value()

    return types.void(x, w, row, token, out, rows, tokens), make


@intrinsic(prefer_literal=True)
def tile_dot(typing, x, value, column, begin, end, out, token, at, rows, tokens):
    """`out[token + t, at + r] = sum over i of x[column[i], t] * value[i, r]`; x is [in, tokens], a column of weights a vector."""
    height, batch, kind = rows.literal_value, tokens.literal_value, value.dtype
    unroll = max(1, 4 // batch)

    def make(context, builder, signature, args):
        xs, values, columns, outs = pointers(context, builder, signature, args, 0, 1, 2, 5)
        begin, end, token, at = args[3], args[4], args[6], args[7]
        width = stride(context, builder, signature, args, 5)

        def body(i, unroll=unroll):
            for u in range(unroll):
                t = _plus(builder, i, u)
                column = builder.zext(builder.load(builder.gep(columns, [t])), I64)
                where = builder.mul(t, ir.Constant(I64, height))
                if batch == 1 and u * height * kind.bitwidth % 512 == 0:  # once a cache line
                    fetch(builder, values, _plus(builder, where, AHEAD * 8 // kind.bitwidth))
                weight = widened(builder, load(builder, values, where, values.type.pointee, height), height, kind)
                for b in range(batch):
                    meets = builder.add(builder.mul(column, ir.Constant(I64, batch)), ir.Constant(I64, b))
                    yield spread(builder, builder.load(builder.gep(xs, [meets])), height), weight

        middle = whole(builder, begin, end, unroll)
        sums = accumulate(builder, begin, middle, unroll, unroll * batch, height, body)
        rest = accumulate(builder, middle, end, 1, batch, height, lambda i: body(i, 1))
        for b in range(batch):
            place = builder.add(at, builder.mul(width, _plus(builder, token, b)))
            _put(builder, outs, place, added(builder, [*sums[b::batch], rest[b]]))
        return context.get_dummy_value()

    return types.void(x, value, column, begin, end, out, token, at, rows, tokens), make


@intrinsic(prefer_literal=True)
def row_dot(typing, x, value, column, begin, end, out, token, row, tokens):
    """`out[token + t, row] = sum over i of value[i] * x[column[i], t]`: the tokens are a vector."""
    lanes, kind = tokens.literal_value, value.dtype

    def make(context, builder, signature, args):
        xs, values, columns, outs = pointers(context, builder, signature, args, 0, 1, 2, 5)
        begin, end, token, row = args[3], args[4], args[6], args[7]
        width = stride(context, builder, signature, args, 5)

        def body(i, unroll=4):
            weights = _in_all_lanes(builder, values, i, unroll, lanes, kind)
            for u, weight in enumerate(weights):
                column = builder.zext(builder.load(builder.gep(columns, [_plus(builder, i, u)])), I64)
                yield weight, load(builder, xs, builder.mul(column, ir.Constant(I64, lanes)), F32, lanes)

        middle = whole(builder, begin, end, 4)
        sums = accumulate(builder, begin, middle, 4, 4, lanes, body)
        sums += accumulate(builder, middle, end, 1, 1, lanes, lambda i: body(i, 1))
        sum_of_row = added(builder, sums)
        for lane in range(lanes):
            place = builder.add(row, builder.mul(width, _plus(builder, token, lane)))
            _put(builder, outs, place, builder.extract_element(sum_of_row, ir.Constant(I32, lane)))
        return context.get_dummy_value()

    return types.void(x, value, column, begin, end, out, token, row, tokens), make


def _in_all_lanes(builder, values, i, count: int, lanes: int, kind):
    """`count` weights from `values[i]`, each in every lane. Two bfloat16 are one broadcast and a shift or a mask."""
    if kind != types.uint16 or count % 2:
        for u in range(count):
            stored = builder.load(builder.gep(values, [_plus(builder, i, u)]))
            yield spread(builder, widened(builder, stored, 1, kind), lanes)
        return
    wide = vector(I32, lanes)
    for u in range(0, count, 2):
        at = builder.bitcast(builder.gep(values, [_plus(builder, i, u)]), I32.as_pointer())
        two = spread(builder, builder.load(at, align=2), lanes)
        yield builder.bitcast(builder.shl(two, ir.Constant(wide, [16] * lanes)), vector(F32, lanes))
        yield builder.bitcast(builder.and_(two, ir.Constant(wide, [0xFFFF0000] * lanes)), vector(F32, lanes))


@intrinsic
def gather_dot(typing, x, value, column, begin, end):
    """The sum over i of value[i] * x[column[i]], eight inputs loaded one by one: Zen's own gather is no faster."""
    kind = value.dtype

    def make(context, builder, signature, args):
        xs, values, columns = pointers(context, builder, signature, args, 0, 1, 2)
        begin, end = args[3], args[4]

        def body(i, unroll=2, lanes=8):
            for u in range(unroll):
                at = _plus(builder, i, lanes * u)
                if lanes == 8 and u == 0:
                    fetch(builder, values, _plus(builder, at, AHEAD * 8 // kind.bitwidth))
                    fetch(builder, columns, _plus(builder, at, AHEAD // 2))
                weight = widened(builder, load(builder, values, at, values.type.pointee, lanes), lanes, kind)
                found = [_input(builder, xs, columns, _plus(builder, at, k)) for k in range(lanes)]
                yield weight, found[0] if lanes == 1 else _side_by_side(builder, found)

        middle = whole(builder, begin, end, 16)
        sums = accumulate(builder, begin, middle, 16, 2, 8, body)
        rest = accumulate(builder, middle, end, 1, 1, 1, lambda i: body(i, 1, 1))
        return added(builder, [total(builder, added(builder, sums), 8), rest[0]])

    return types.float32(x, value, column, begin, end), make


def _input(builder, xs, columns, i):
    return builder.load(builder.gep(xs, [builder.zext(builder.load(builder.gep(columns, [i])), I64)]))


def _side_by_side(builder, numbers):
    out = ir.Constant(vector(F32, len(numbers)), ir.Undefined)
    for k, number in enumerate(numbers):
        out = builder.insert_element(out, number, ir.Constant(I32, k))
    return out
