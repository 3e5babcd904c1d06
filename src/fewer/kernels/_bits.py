"""Weights whose places are bits of eight columns, moved there by one permutation: for Bitmask and N:M, in numba."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._dots import AHEAD, _plus, _put
from ._simd import F32, I32, I64, accumulate, added, fetch, load, pointers, stride, total, vector, widened

ABSENT = -128  # below zero: the lane is cleared


def _by_rank() -> list[list[int]]:
    """For each byte and each of its bits, the rank among those that are set: which of eight values goes there."""
    return [
        [bin(byte & ((1 << j) - 1)).count("1") if byte >> j & 1 else ABSENT for j in range(8)] for byte in range(256)
    ]


def _by_place() -> list[list[int]]:
    """For each byte of four 2:4 places, which of four values goes to each of eight columns."""
    rows = []
    for byte in range(256):
        row = [ABSENT] * 8
        for k in (3, 2, 1, 0):
            row[4 * (k // 2) + (byte >> 2 * k & 3)] = k
        rows.append(row)
    return rows


class _Spreader:
    """Emits the eight weights that a byte stands for; `ranked` bits tell how many values each took."""

    def __init__(self, context, builder, signature, args, ranked: bool):
        self.values, self.bytes = pointers(context, builder, signature, args, 1, 2)
        self.builder, self.kind, self.ranked = builder, signature.args[1].dtype, ranked
        row = vector(I32, 8)
        rows = _by_rank() if ranked else _by_place()
        made = ir.Constant(ir.ArrayType(row, 256), [ir.Constant(row, r) for r in rows])
        self.table = cgutils.global_constant(builder, "by_rank" if ranked else "by_place", made)
        self.table.align = 32
        self.begin = args[3]
        self.next = cgutils.alloca_once_value(builder, self.begin)
        builder.store(self.begin, self.next)
        kind = ir.FunctionType(vector(F32, 8), [vector(F32, 8), vector(I32, 8)])
        self.permute = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.permps")

    def __call__(self, i, ask=True):
        builder, lanes = self.builder, 8 if self.ranked else 4
        byte = builder.load(builder.gep(self.bytes, [i]))
        if self.ranked:
            here = builder.load(self.next)
            builder.store(builder.add(here, builder.zext(builder.ctpop(byte), I64)), self.next)
        else:
            here = builder.add(self.begin, builder.mul(i, ir.Constant(I64, 4)))
        if ask:
            fetch(builder, self.values, _plus(builder, here, AHEAD * 8 // self.kind.bitwidth))
        stored = widened(builder, load(builder, self.values, here, self.values.type.pointee, lanes), lanes, self.kind)
        if lanes == 4:
            stored = builder.shuffle_vector(
                stored, ir.Constant(stored.type, ir.Undefined), ir.Constant(vector(I32, 8), [*range(8)])
            )
        order = builder.load(builder.gep(self.table, [ir.Constant(I64, 0), builder.zext(byte, I64)]), align=32)
        absent = builder.icmp_signed("<", order, ir.Constant(vector(I32, 8), [0] * 8))
        moved = builder.call(self.permute, [stored, order])
        return builder.select(absent, ir.Constant(vector(F32, 8), [0.0] * 8), moved)


@intrinsic(prefer_literal=True)
def bit_dot(typing, x, value, mask, begin, count, out, token, row, tokens, ranked):
    """`out[token + t, row] = sum over the set bits j of `count` bytes of mask of x[token + t, j] * (the next value)`.

    The values begin at `begin`. With `ranked` False the bytes are places of 2:4. Up to eight values beyond the row are
    read; the caller sees to it that there are as many.
    """
    batch, unroll = tokens.literal_value, 4 if tokens.literal_value == 1 else 2 if tokens.literal_value == 2 else 1

    def make(context, builder, signature, args):
        (xs, outs), count, token, row = pointers(context, builder, signature, args, 0, 5), args[4], args[6], args[7]
        width, width_out = (stride(context, builder, signature, args, p) for p in (0, 5))
        spread_byte = _Spreader(context, builder, signature, args, ranked.literal_value)
        from_x = [builder.mul(_plus(builder, token, b), width) for b in range(batch)]

        def body(i, unroll=unroll):
            for u in range(unroll):
                here = _plus(builder, i, u)
                weight, start = spread_byte(here, u == 0), builder.mul(here, ir.Constant(I64, 8))
                yield from ((weight, load(builder, xs, builder.add(f, start), F32, 8)) for f in from_x)

        middle = builder.sub(count, builder.srem(count, ir.Constant(I64, unroll)))
        sums = accumulate(builder, ir.Constant(I64, 0), middle, unroll, unroll * batch, 8, body)
        rest = accumulate(builder, middle, count, 1, batch, 8, lambda i: body(i, 1))
        for b in range(batch):
            place = builder.add(row, builder.mul(width_out, _plus(builder, token, b)))
            _put(builder, outs, place, total(builder, added(builder, [*sums[b::batch], rest[b]]), 8))
        return context.get_dummy_value()

    return types.void(x, value, mask, begin, count, out, token, row, tokens, ranked), make


@intrinsic(prefer_literal=True)
def bit_unpack(typing, out, value, mask, begin, count, ranked):
    """`out[: 8 * count]` gets the weights of a row, zeros where there is none; arguments as for `bit_dot`."""

    def make(context, builder, signature, args):
        (outs,), count = pointers(context, builder, signature, args, 0), args[4]
        spread_byte = _Spreader(context, builder, signature, args, ranked.literal_value)
        with cgutils.for_range_slice(builder, ir.Constant(I64, 0), count, ir.Constant(I64, 1), I64) as (i, _):
            _put(builder, outs, builder.mul(i, ir.Constant(I64, 8)), spread_byte(i))
        return context.get_dummy_value()

    return types.void(out, value, mask, begin, count, ranked), make
