"""Products of a few queries with rows that a list names, for numba: a row is read once for four heads.

Rows come from memory once, in any order; the rows that the next product wants are asked for while this one is made.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._simd import F32, I32, I64, accumulate, fetch, load, pointers, spread, stride, vector, whole, widened
from ._softmax import LANES

SLOTS = LANES // 4  # rows at a time; by four heads, one vector of scores
VECTORS = LANES // 4  # of the output, by four heads: as many sums as registers hold


def _plus(builder, a, k: int):
    return builder.add(a, ir.Constant(I64, k)) if k else a


def _row(builder, rows, index, width):
    """Where the row begins that `rows[index]` names."""
    return builder.mul(builder.sext(builder.load(builder.gep(rows, [index])), I64), width)


def together(builder, vectors, lanes: int):
    """The sums of several vectors' lanes side by side: halves of two vectors are added at once. A power of two of them."""
    width = lanes  # lanes that hold parts of one sum
    while width > 1:
        half, size = width // 2, vectors[0].type.count
        if len(vectors) > 1:
            vectors = [_halves(builder, a, b, half, 2 * size) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        else:
            vectors = [_halves(builder, vectors[0], vectors[0], half, size)]
        width = half
    return vectors[0]


def _halves(builder, a, b, half: int, size: int):
    places = [k for k in range(size) if k // half % 2 == 0]
    low, high = (ir.Constant(vector(I32, len(places)), [k + add for k in places]) for add in (0, half))
    return builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high), flags=("fast",))


@intrinsic(prefer_literal=True)
def dots(typing, q, k, rows, slot, s, row, column, other, ahead, heads):
    """`s[row + h, column + j] = q[row + h] . k[rows[slot + j]]` for `heads` (4, 2, 1) and SLOTS rows.

    Meanwhile the rows `other[rows[slot + j + ahead]]` are asked for, if `ahead` >= 0.
    """
    height, kind = heads.literal_value, k.dtype
    asks = getattr(ahead, "literal_value", 0) >= 0

    def make(context, builder, signature, args):
        qs, ks, names, outs, others = pointers(context, builder, signature, args, 0, 1, 2, 4, 7)
        slot, row, column = args[3], args[5], args[6]
        width_q, width_k, width_s, width_o = (stride(context, builder, signature, args, p) for p in (0, 1, 4, 7))
        from_q = [builder.mul(_plus(builder, row, h), width_q) for h in range(height)]
        from_k = [_row(builder, names, _plus(builder, slot, j), width_k) for j in range(SLOTS)]
        if asks:
            later = builder.add(slot, builder.sext(args[8], I64) if args[8].type != I64 else args[8])
            from_o = [_row(builder, names, _plus(builder, later, j), width_o) for j in range(SLOTS)]
        count = cgutils.unpack_tuple(builder, context.make_array(signature.args[1])(context, builder, args[1]).shape)[1]

        def body(i, lanes=LANES):
            if asks and lanes > 1:
                for f in from_o:
                    fetch(builder, others, builder.add(f, i), 2)
            stored = [load(builder, ks, builder.add(f, i), ks.type.pointee, lanes) for f in from_k]
            keys = [widened(builder, v, lanes, kind) for v in stored]
            for f in from_q:
                mine = load(builder, qs, builder.add(f, i), F32, lanes)
                yield from ((mine, key) for key in keys)

        middle = whole(builder, ir.Constant(I64, 0), count, LANES)
        sums = together(
            builder, accumulate(builder, ir.Constant(I64, 0), middle, LANES, height * SLOTS, LANES, body), LANES
        )
        for h in range(height):
            mine = builder.shuffle_vector(
                sums, sums, ir.Constant(vector(I32, SLOTS), [*range(h * SLOTS, h * SLOTS + SLOTS)])
            )
            at = builder.add(builder.mul(_plus(builder, row, h), width_s), column)
            where = builder.bitcast(builder.gep(outs, [at]), mine.type.as_pointer())
            builder.store(mine, where, align=4)
        with builder.if_then(builder.icmp_signed("<", middle, count), likely=False):
            rest = accumulate(builder, middle, count, 1, height * SLOTS, 1, lambda i: body(i, 1))
            for n, v in enumerate(rest):
                h, j = divmod(n, SLOTS)
                at = builder.add(builder.mul(_plus(builder, row, h), width_s), _plus(builder, column, j))
                where = builder.gep(outs, [at])
                builder.store(builder.fadd(builder.load(where), v), where)
        return context.get_dummy_value()

    return types.void(q, k, rows, types.int64, s, types.int64, types.int64, other, ahead, heads), make


@intrinsic(prefer_literal=True)
def weigh(typing, s, v, rows, slot, count, out, row, column, other, ahead, heads, vectors):
    """`out[row + h, column + c] += sum over j < count of s[row + h, j] * v[rows[slot + j], c]`.

    For `heads` (4, 2, 1) and `vectors` of LANES columns, or one column (0). The rows `other[rows[slot + j + ahead]]` are asked for.
    """
    height, many, kind = heads.literal_value, vectors.literal_value, v.dtype
    lanes, many = (LANES, many) if many else (1, 1)

    def make(context, builder, signature, args):
        weights, vs, names, outs, others = pointers(context, builder, signature, args, 0, 1, 2, 5, 8)
        slot, row, column = args[3], args[6], args[7]
        width_s, width_v, width_out, width_o = (stride(context, builder, signature, args, p) for p in (0, 1, 5, 8))
        from_s = [builder.mul(_plus(builder, row, h), width_s) for h in range(height)]

        def body(j):
            here = builder.add(slot, j)
            at = builder.add(_row(builder, names, here, width_v), column)
            if lanes > 1:
                next_ = builder.add(_row(builder, names, builder.add(here, args[9]), width_o), column)
            values = []
            for u in range(many):
                if lanes > 1:
                    fetch(builder, others, _plus(builder, next_, u * lanes), 2)
                stored = load(builder, vs, _plus(builder, at, u * lanes), vs.type.pointee, lanes)
                values.append(widened(builder, stored, lanes, kind))
            for f in from_s:
                weight = builder.load(builder.gep(weights, [builder.add(f, j)]))
                weight = spread(builder, weight, lanes) if lanes > 1 else weight
                yield from ((weight, value) for value in values)

        sums = accumulate(builder, ir.Constant(I64, 0), args[4], 1, height * many, lanes, body)
        for n, value in enumerate(sums):
            h, u = divmod(n, many)
            at = builder.add(builder.mul(_plus(builder, row, h), width_out), _plus(builder, column, u * lanes))
            old = load(builder, outs, at, F32, lanes)
            where = builder.bitcast(builder.gep(outs, [at]), value.type.as_pointer())
            builder.store(builder.fadd(old, value), where, align=4)
        return context.get_dummy_value()

    i = types.int64
    return types.void(s, v, rows, i, i, out, i, i, other, i, heads, vectors), make
