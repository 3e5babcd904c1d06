"""A small matrix product for numba, in registers: sums of outer products of a few numbers with a few vectors."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ._simd import F32, I64, accumulate, load, pointers, spread, stride
from ._softmax import LANES

HIGH = LANES // 2  # rows of the result at a time; by two vectors, as many sums as registers hold


def _plus(builder, a, k: int):
    return builder.add(a, ir.Constant(I64, k)) if k else a


@intrinsic(prefer_literal=True)
def outer(typing, a, b, out, row, column, depth, turned, adds):
    """Rows `row` .. + HIGH and columns `column` .. + 2 LANES of `out`: the sum over i < `depth` of a[row, i] * b[i, column].

    With `turned` a is given as [i, row]; with `adds` the sum is added to what `out` holds.
    """
    columns, more = turned.literal_value, adds.literal_value

    def make(context, builder, signature, args):
        left, right, outs = pointers(context, builder, signature, args, 0, 1, 2)
        row, column, depth = args[3:6]
        width_a, width_b, width_out = (stride(context, builder, signature, args, p) for p in (0, 1, 2))
        rows = [_plus(builder, row, h) for h in range(HIGH)]
        begins = rows if columns else [builder.mul(r, width_a) for r in rows]

        def body(i):
            at = builder.add(builder.mul(i, width_b), column)
            vectors = [load(builder, right, _plus(builder, at, u * LANES), F32, LANES) for u in range(2)]
            along = builder.mul(i, width_a) if columns else i
            for begin in begins:
                one = spread(builder, builder.load(builder.gep(left, [builder.add(begin, along)])), LANES)
                yield from ((one, v) for v in vectors)

        sums = accumulate(builder, ir.Constant(I64, 0), depth, 1, 2 * HIGH, LANES, body)
        for n, value in enumerate(sums):
            h, u = divmod(n, 2)
            at = _plus(builder, builder.add(builder.mul(rows[h], width_out), column), u * LANES)
            if more:
                value = builder.fadd(value, load(builder, outs, at, F32, LANES))
            builder.store(value, builder.bitcast(builder.gep(outs, [at]), value.type.as_pointer()), align=4)
        return context.get_dummy_value()

    i = types.int64
    return types.void(a, b, out, i, i, i, turned, adds), make
