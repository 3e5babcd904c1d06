"""exp, tanh and softmax for numba, in vectors: what attention does between its two products.

Functions that use these must not be compiled with `fastmath=True`: it would undo the exact steps of `exp`.
"""

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._simd import F32, I32, I64, load, pointers, spread, stride, total, vector

LANES = 16 if get_host_cpu_features().get("avx512f") else 8
LOW = -3.0e38  # the score of what is not read: finite, so that no two infinities are subtracted
FUSED = ("contract",)


def constant(value: float, lanes: int = LANES, kind=F32):
    """The same number in every lane."""
    return ir.Constant(vector(kind, lanes), [value] * lanes)


def _horner(builder, x, numbers):
    """A polynomial, its highest coefficient first."""
    out = constant(numbers[0])
    for n in numbers[1:]:
        out = builder.fadd(builder.fmul(out, x, flags=FUSED), constant(n), flags=FUSED)
    return out


def larger(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def exp(builder, x):
    """e to the x for x <= 88, to two units in the last place; 0 below -87. Cephes' expf: x = n log 2 + f, |f| <= log(2) / 2."""
    inside = larger(builder, x, constant(-87.0))
    call = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(inside.type, [inside.type]), f"llvm.rint.v{LANES}f32"
    )
    n = builder.call(call, [builder.fmul(inside, constant(1.44269504))])
    f = builder.fadd(inside, builder.fmul(n, constant(-0.693359375), flags=FUSED), flags=FUSED)  # exact: few bits
    f = builder.fadd(f, builder.fmul(n, constant(2.12194440e-4), flags=FUSED), flags=FUSED)
    bend = _horner(builder, f, (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 0.16666665, 0.5, 1.0, 1.0))
    power = builder.fptosi(n, vector(I32, LANES))
    power = builder.shl(builder.add(power, constant(127, kind=I32)), constant(23, kind=I32))
    value = builder.fmul(bend, builder.bitcast(power, bend.type))
    return builder.select(builder.fcmp_ordered(">", x, constant(-87.0)), value, constant(0.0))


def tanh(builder, x):
    """Cephes' tanhf: a polynomial up to 0.625, 1 - 2 / (e^2x + 1) above."""
    sign = builder.select(builder.fcmp_ordered("<", x, constant(0.0)), constant(-1.0), constant(1.0))
    size = builder.fmul(x, sign)
    size = builder.select(builder.fcmp_ordered("<", size, constant(20.0)), size, constant(20.0))
    grown = builder.fadd(exp(builder, builder.fmul(size, constant(2.0))), constant(1.0))
    far = builder.fmul(sign, builder.fsub(constant(1.0), builder.fdiv(constant(2.0), grown)))
    z = builder.fmul(x, x)
    bend = _horner(builder, z, (-5.7049887e-3, 2.0639089e-2, -5.3739716e-2, 0.13331442, -0.33333282))
    near = builder.fadd(builder.fmul(builder.fmul(bend, z), x), x)
    return builder.select(builder.fcmp_ordered("<", size, constant(0.625)), near, far)


def _where(builder, pointer, index):
    return builder.bitcast(builder.gep(pointer, [index]), vector(F32, LANES).as_pointer())


def _steps(builder, end):
    return cgutils.for_range_slice(builder, ir.Constant(I64, 0), end, ir.Constant(I64, LANES), I64)


@intrinsic
def bound_scores(typing, s, row, count, cap):
    """`s[row, i] = cap tanh(s[row, i] / cap)` for i < `count`, a multiple of LANES."""

    def make(context, builder, signature, args):
        (rows,) = pointers(context, builder, signature, args, 0)
        begin = builder.mul(args[1], stride(context, builder, signature, args, 0))
        cap = spread(builder, args[3], LANES)
        with _steps(builder, args[2]) as (i, _):
            at = builder.add(begin, i)
            v = builder.fdiv(load(builder, rows, at, F32, LANES), cap)
            builder.store(builder.fmul(cap, tanh(builder, v)), _where(builder, rows, at), align=4)
        return context.get_dummy_value()

    return types.void(s, types.int64, types.int64, types.float32), make


@intrinsic
def row_max(typing, s, row, count):
    """The largest of `s[row, :count]`, `count` a multiple of LANES; at least LOW."""

    def make(context, builder, signature, args):
        (rows,) = pointers(context, builder, signature, args, 0)
        begin = builder.mul(args[1], stride(context, builder, signature, args, 0))
        best = cgutils.alloca_once_value(builder, constant(LOW))
        builder.store(constant(LOW), best)
        with _steps(builder, args[2]) as (i, _):
            v = load(builder, rows, builder.add(begin, i), F32, LANES)
            builder.store(larger(builder, builder.load(best), v), best)
        v, lanes = builder.load(best), LANES
        while lanes > 1:
            lanes //= 2
            halves = [ir.Constant(vector(I32, lanes), [*range(k, k + lanes)] if lanes > 1 else k) for k in (0, lanes)]
            take = builder.shuffle_vector if lanes > 1 else lambda a, _, k: builder.extract_element(a, k)
            v = larger(builder, *(take(v, v, h) for h in halves))
        return v

    return types.float32(s, types.int64, types.int64), make


@intrinsic
def row_exp(typing, s, row, count, best):
    """`s[row, i] = exp(s[row, i] - best)`, 0 where it was LOW; their sum. `count` is a multiple of LANES."""

    def make(context, builder, signature, args):
        (rows,) = pointers(context, builder, signature, args, 0)
        begin = builder.mul(args[1], stride(context, builder, signature, args, 0))
        best = spread(builder, args[3], LANES)
        sums = cgutils.alloca_once_value(builder, constant(0.0))
        builder.store(constant(0.0), sums)
        with _steps(builder, args[2]) as (i, _):
            at = builder.add(begin, i)
            v = _weight(builder, load(builder, rows, at, F32, LANES), best)
            builder.store(v, _where(builder, rows, at), align=4)
            builder.store(builder.fadd(builder.load(sums), v), sums)
        return total(builder, builder.load(sums), LANES)

    return types.float32(s, types.int64, types.int64, types.float32), make


def _weight(builder, score, best):
    """exp(score - best); 0 for what is not read, though nothing else be read."""
    read = builder.fcmp_ordered(">", score, constant(LOW / 2))
    return builder.select(read, exp(builder, builder.fsub(score, best)), constant(0.0))


@intrinsic
def soften(typing, s, count, first, best, sums, shrink):
    """Online softmax down the columns `first` .. `first + LANES` of `s[:count]`, in place.

    `best` and `sums` of these columns are brought up to date; `shrink` is what older weights are to be multiplied by.
    """

    def make(context, builder, signature, args):
        rows, bests, totals, shrinks = pointers(context, builder, signature, args, 0, 3, 4, 5)
        count, first = args[1], args[2]
        width = stride(context, builder, signature, args, 0)
        old = load(builder, bests, first, F32, LANES)
        most, sums = (cgutils.alloca_once_value(builder, constant(0.0)) for _ in range(2))
        builder.store(old, most)
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), count, ir.Constant(I64, 1), I64) as (i, _):
            v = load(builder, rows, builder.add(builder.mul(i, width), first), F32, LANES)
            builder.store(larger(builder, builder.load(most), v), most)
        new = builder.load(most)
        less = exp(builder, builder.fsub(old, new))
        builder.store(builder.fmul(less, load(builder, totals, first, F32, LANES)), sums)
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), count, ir.Constant(I64, 1), I64) as (i, _):
            at = builder.add(builder.mul(i, width), first)
            v = _weight(builder, load(builder, rows, at, F32, LANES), new)
            builder.store(v, _where(builder, rows, at), align=4)
            builder.store(builder.fadd(builder.load(sums), v), sums)
        for pointer, v in ((bests, new), (totals, builder.load(sums)), (shrinks, less)):
            builder.store(v, _where(builder, pointer, first), align=4)
        return context.get_dummy_value()

    return types.void(s, types.int64, types.int64, best, sums, shrink), make
