"""Vectors for numba: loops written in LLVM's own vector types, which become AVX2, AVX-512 or NEON alike.

numba leaves short inner loops (16 outputs, 8 batch rows) scalar; these keep them in registers.
Small number types arrive as integers: uint16 is bfloat16, int16 is float16, int8 is int8.
"""

import contextlib

import numba
import numpy as np
import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FAST = ("fast",)
PERMUTES = bool(get_host_cpu_features().get("avx2"))  # `bit_dot` is written for x86


def view(t: Tensor) -> np.ndarray:
    """The numbers of a tensor as numpy has them, without a copy: bfloat16 as uint16, float16 as int16."""
    t = t.detach().contiguous()
    if t.dtype == torch.float64:
        t = t.float()
    return t.view({torch.bfloat16: torch.uint16, torch.float16: torch.int16}.get(t.dtype, t.dtype)).numpy()


def _vec(kind, lanes: int):
    return ir.VectorType(kind, lanes) if lanes > 1 else kind


def _widen(builder, v, lanes: int, kind: types.Type):
    """`lanes` stored numbers as float32."""
    wide, real = _vec(I32, lanes), _vec(F32, lanes)
    if kind == types.float32:
        return v
    if kind == types.uint16:  # bfloat16: the upper half of a float32
        shift = ir.Constant(I32, 16) if lanes == 1 else ir.Constant(wide, [16] * lanes)
        return builder.bitcast(builder.shl(builder.zext(v, wide), shift), real)
    if kind == types.int16:
        return builder.fpext(builder.bitcast(v, _vec(ir.HalfType(), lanes)), real)
    if kind == types.int8:
        return builder.sitofp(v, real)
    raise TypeError(f"values of type {kind} are not handled")


@intrinsic
def widen(typing, v):
    """A stored number as float32."""

    def make(context, builder, signature, args):
        return _widen(builder, args[0], 1, signature.args[0])

    return types.float32(v), make


def _load(builder, pointer, index, kind, lanes: int):
    """`lanes` neighbours from `pointer[index]`."""
    at = builder.bitcast(builder.gep(pointer, [index]), ir.PointerType(_vec(kind, lanes)))
    value = builder.load(at)
    value.align = kind.width // 8 if isinstance(kind, ir.IntType) else 4
    return value


def _spread(builder, v, lanes: int):
    """One number in every lane."""
    one = builder.insert_element(ir.Constant(_vec(v.type, lanes), ir.Undefined), v, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_vec(I32, lanes), [0] * lanes))


def _pointers(context, builder, signature, args, *positions):
    return [context.make_array(signature.args[p])(context, builder, args[p]).data for p in positions]


def _accumulate(builder, begin, end, step, sums: int, lanes: int, body):
    """Sum vectors in registers: `body(i)` gives `sums` of them for the step that starts at `i`."""
    vector = _vec(F32, lanes)
    slots = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * lanes)) for _ in range(sums)]
    for slot in slots:
        builder.store(ir.Constant(vector, [0.0] * lanes), slot)
    with cgutils.for_range_slice(builder, begin, end, ir.Constant(I64, step), I64) as (i, _):
        for slot, (a, b) in zip(slots, body(i), strict=True):
            builder.store(builder.fadd(builder.load(slot), builder.fmul(a, b, flags=FAST), flags=FAST), slot)
    return [builder.load(slot) for slot in slots]


@intrinsic(prefer_literal=True)
def tile_dot(typing, x, value, column, begin, end, out, at, lanes, rows):
    """`out[b, at : at + lanes] = sum over t of x[column[t], b] * value[t]` for the first `rows` of the batch from x on."""
    height, batch, kind = lanes.literal_value, rows.literal_value, value.dtype
    unroll = max(1, 4 // batch)

    def make(context, builder, signature, args):
        xs, values, columns, outs = _pointers(context, builder, signature, args, 0, 1, 2, 5)
        begin, end, at = args[3], args[4], args[6]
        width, stride = (_stride(context, builder, signature, args, p) for p in (0, 5))

        def body(i, unroll=unroll):
            pairs = []
            for u in range(unroll):
                t = builder.add(i, ir.Constant(I64, u))
                column = builder.zext(builder.load(builder.gep(columns, [t])), I64)
                stored = _load(builder, values, builder.mul(t, ir.Constant(I64, height)), values.type.pointee, height)
                weight = _widen(builder, stored, height, kind)
                for b in range(batch):
                    where = builder.add(builder.mul(column, width), ir.Constant(I64, b))
                    pairs.append((_spread(builder, builder.load(builder.gep(xs, [where])), height), weight))
            return pairs

        count = builder.sub(end, begin)
        middle = builder.sub(end, builder.srem(count, ir.Constant(I64, unroll)))
        sums = _accumulate(builder, begin, middle, unroll, unroll * batch, height, body)
        rest = _accumulate(builder, middle, end, 1, batch, height, lambda i: body(i, 1))
        for b in range(batch):
            total = rest[b]
            for u in range(unroll):
                total = builder.fadd(total, sums[u * batch + b], flags=FAST)
            where = builder.add(at, builder.mul(stride, ir.Constant(I64, b)))
            builder.store(total, builder.bitcast(builder.gep(outs, [where]), total.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(x, value, column, begin, end, out, at, lanes, rows), make


@intrinsic(prefer_literal=True)
def row_dot(typing, x, value, column, begin, end, out, lanes):
    """`out[: lanes] = sum over t of value[t] * x[column[t], : lanes]`: one weight row for `lanes` of the batch."""
    width_of_vector, kind = lanes.literal_value, value.dtype

    def make(context, builder, signature, args):
        xs, values, columns, outs = _pointers(context, builder, signature, args, 0, 1, 2, 5)
        begin, end = args[3], args[4]
        width = _stride(context, builder, signature, args, 0)

        def body(i, unroll=4):
            pairs = []
            for u in range(unroll):
                t = builder.add(i, ir.Constant(I64, u))
                column = builder.zext(builder.load(builder.gep(columns, [t])), I64)
                weight = _widen(builder, builder.load(builder.gep(values, [t])), 1, kind)
                xv = _load(builder, xs, builder.mul(column, width), F32, width_of_vector)
                pairs.append((_spread(builder, weight, width_of_vector), xv))
            return pairs

        middle = builder.sub(end, builder.srem(builder.sub(end, begin), ir.Constant(I64, 4)))
        sums = _accumulate(builder, begin, middle, 4, 4, width_of_vector, body)
        sums += _accumulate(builder, middle, end, 1, 1, width_of_vector, lambda i: body(i, 1))
        total = sums[0]
        for more in sums[1:]:
            total = builder.fadd(total, more, flags=FAST)
        builder.store(total, builder.bitcast(outs, total.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(x, value, column, begin, end, out, lanes), make


@intrinsic(prefer_literal=True)
def bit_dot(typing, x, value, mask, begin, out, at, rows):
    """`out[b, at] = sum over set bits j of mask of x[b, j] * (the next value)`, for `rows` of the batch.

    Eight columns a step: eight values are read, and a table of permutations, one for each byte, moves them to their
    places. Where eight would pass the end, they are read earlier and the permutation is moved on. The caller sees to it
    that there are eight.
    """
    batch, kind = rows.literal_value, value.dtype

    def make(context, builder, signature, args):
        xs, values, bytes_, outs = _pointers(context, builder, signature, args, 0, 1, 2, 4)
        begin, at = args[3], args[5]
        width, stride = (_stride(context, builder, signature, args, p) for p in (0, 4))
        count = context.make_array(signature.args[2])(context, builder, args[2]).nitems
        total = context.make_array(signature.args[1])(context, builder, args[1]).nitems
        last = builder.sub(total, ir.Constant(I64, 8))
        table = cgutils.global_constant(builder, "spread_of_byte", _spread_table())
        table.align = 32
        next_value = cgutils.alloca_once_value(builder, begin)
        permute = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_vec(F32, 8), [_vec(F32, 8), _vec(I32, 8)]), "llvm.x86.avx2.permps"
        )

        def body(i):
            byte, here = builder.load(builder.gep(bytes_, [i])), builder.load(next_value)
            early = builder.icmp_signed(">", here, last)
            source = builder.select(early, last, here)
            stored = _widen(builder, _load(builder, values, source, values.type.pointee, 8), 8, kind)
            order = builder.load(builder.gep(table, [ir.Constant(I64, 0), builder.zext(byte, I64)]), align=32)
            moved = builder.trunc(builder.sub(here, source), I32)
            weight = builder.call(permute, [stored, builder.add(order, _spread(builder, moved, 8))])
            bits = builder.bitcast(byte, ir.VectorType(ir.IntType(1), 8))
            weight = builder.select(bits, weight, ir.Constant(_vec(F32, 8), [0.0] * 8))
            builder.store(builder.add(here, builder.zext(builder.ctpop(byte), I64)), next_value)
            start = builder.mul(i, ir.Constant(I64, 8))
            for b in range(batch):
                where = builder.add(builder.mul(width, ir.Constant(I64, b)), start)
                yield weight, _load(builder, xs, where, F32, 8)

        sums = _accumulate(builder, ir.Constant(I64, 0), count, 1, batch, 8, body)
        for b, vector in enumerate(sums):
            number = _sum(builder, vector, 8)
            builder.store(number, builder.gep(outs, [builder.add(at, builder.mul(stride, ir.Constant(I64, b)))]))
        return context.get_dummy_value()

    return types.void(x, value, mask, begin, out, at, rows), make


def _spread_table():
    """For each byte, the rank of each of its bits: where bit j finds its value among those of the byte."""
    ranks = [[bin(byte & ((1 << j) - 1)).count("1") for j in range(8)] for byte in range(256)]
    row = ir.VectorType(I32, 8)
    return ir.Constant(ir.ArrayType(row, 256), [ir.Constant(row, r) for r in ranks])


def _sum(builder, vector, lanes: int):
    total = builder.extract_element(vector, ir.Constant(I32, 0))
    for lane in range(1, lanes):
        total = builder.fadd(total, builder.extract_element(vector, ir.Constant(I32, lane)), flags=FAST)
    return total


def _stride(context, builder, signature, args, position: int):
    """How many float32 lie from one row to the next."""
    array = context.make_array(signature.args[position])(context, builder, args[position])
    return builder.sdiv(cgutils.unpack_tuple(builder, array.strides)[0], ir.Constant(I64, 4))


@contextlib.contextmanager
def threads():
    """As many numba threads as torch has been told to use."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)
