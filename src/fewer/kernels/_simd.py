"""Vectors for numba: loops written in LLVM's own vector types, which become AVX2, AVX-512 or NEON alike.

numba leaves short inner loops (16 outputs, 8 batch rows) scalar; these keep them in registers.
Small number types arrive as integers: uint16 is bfloat16, int16 is float16, int8 is int8.
"""

import ctypes
import os
import pathlib
import threading

import numba
import numpy as np
import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.ufunc import parallel
from torch import Tensor

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
FAST = ("fast",)
PERMUTES = bool(get_host_cpu_features().get("avx2"))  # bits are spread by an instruction of x86


def _share_threads() -> None:
    """Let numba find the OpenMP that came with torch: of two pools, the idle one would spin on the other's cores."""
    for file in (pathlib.Path(torch.__file__).parent / "lib").glob("libgomp*"):
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    told = os.environ.get("OMP_NUM_THREADS", "")  # numba wakes its whole pool for every loop: who has no work spins
    if told.isdigit() and "NUMBA_NUM_THREADS" not in os.environ:
        numba.config.NUMBA_NUM_THREADS = min(max(1, int(told)), numba.config.NUMBA_NUM_THREADS)
        parallel.NUM_THREADS = numba.config.NUMBA_NUM_THREADS  # what it launches, and tells OpenMP and so torch


_share_threads()


def view(t: Tensor) -> np.ndarray:
    """The numbers of a tensor as numpy has them, without a copy: bfloat16 as uint16, float16 as int16."""
    t = t.detach().contiguous()
    if t.dtype == torch.float64:
        t = t.float()
    return t.view({torch.bfloat16: torch.uint16, torch.float16: torch.int16}.get(t.dtype, t.dtype)).numpy()


def vector(kind, lanes: int):
    return ir.VectorType(kind, lanes) if lanes > 1 else kind


def widened(builder, v, lanes: int, kind: types.Type):
    """`lanes` stored numbers as float32."""
    wide, real = vector(I32, lanes), vector(F32, lanes)
    if kind == types.float32:
        return v
    if kind == types.uint16:  # bfloat16: the upper half of a float32
        shift = ir.Constant(I32, 16) if lanes == 1 else ir.Constant(wide, [16] * lanes)
        return builder.bitcast(builder.shl(builder.zext(v, wide), shift), real)
    if kind == types.int16:
        return builder.fpext(builder.bitcast(v, vector(ir.HalfType(), lanes)), real)
    if kind == types.int8:
        return builder.sitofp(v, real)
    raise TypeError(f"values of type {kind} are not handled")


@intrinsic
def widen(typing, v):
    """A stored number as float32."""

    def make(context, builder, signature, args):
        return widened(builder, args[0], 1, signature.args[0])

    return types.float32(v), make


def load(builder, pointer, index, kind, lanes: int):
    """`lanes` neighbours from `pointer[index]`."""
    at = builder.bitcast(builder.gep(pointer, [index]), ir.PointerType(vector(kind, lanes)))
    value = builder.load(at)
    value.align = kind.width // 8 if isinstance(kind, ir.IntType) else 4
    return value


def spread(builder, v, lanes: int):
    """One number in every lane."""
    one = builder.insert_element(ir.Constant(vector(v.type, lanes), ir.Undefined), v, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(vector(I32, lanes), [0] * lanes))


def pointers(context, builder, signature, args, *positions):
    return [context.make_array(signature.args[p])(context, builder, args[p]).data for p in positions]


def accumulate(builder, begin, end, step, sums: int, lanes: int, body):
    """Sum products in registers: `body(i)` gives `sums` pairs of vectors for the step that starts at `i`."""
    kind = vector(F32, lanes)
    nothing = ir.Constant(kind, [0.0] * lanes) if lanes > 1 else ir.Constant(kind, 0.0)
    slots = [cgutils.alloca_once_value(builder, nothing) for _ in range(sums)]
    for slot in slots:
        builder.store(nothing, slot)
    with cgutils.for_range_slice(builder, begin, end, ir.Constant(I64, step), I64) as (i, _):
        for slot, (a, b) in zip(slots, body(i), strict=True):
            builder.store(builder.fadd(builder.load(slot), builder.fmul(a, b, flags=FAST), flags=FAST), slot)
    return [builder.load(slot) for slot in slots]


def added(builder, vectors):
    """The sum of several vectors."""
    out = vectors[0]
    for more in vectors[1:]:
        out = builder.fadd(out, more, flags=FAST)
    return out


def total(builder, v, lanes: int):
    """The sum of a vector's lanes, by halves."""
    while lanes > 1:
        lanes //= 2
        low, high = (ir.Constant(vector(I32, lanes), [*range(k, k + lanes)] if lanes > 1 else k) for k in (0, lanes))
        if lanes == 1:
            v = builder.fadd(builder.extract_element(v, low), builder.extract_element(v, high), flags=FAST)
        else:
            v = builder.fadd(builder.shuffle_vector(v, v, low), builder.shuffle_vector(v, v, high), flags=FAST)
    return v


def whole(builder, begin, end, step: int):
    """The last multiple of `step` on the way from `begin` to `end`."""
    return builder.sub(end, builder.srem(builder.sub(end, begin), ir.Constant(I64, step)))


def fetch(builder, pointer, index, near: int = 0):
    """Ask for the cache line of `pointer[index]`: 0 to be read at once and once, 2 to wait in the second cache."""
    at = builder.bitcast(builder.gep(pointer, [index]), ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [at.type, I32, I32, I32])
    call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(call, [at, *(ir.Constant(I32, k) for k in (0, near, 1))])


def stride(context, builder, signature, args, position: int):
    """How many numbers lie from one row to the next."""
    array = context.make_array(signature.args[position])(context, builder, args[position])
    size = signature.args[position].dtype.bitwidth // 8
    return builder.sdiv(cgutils.unpack_tuple(builder, array.strides)[0], ir.Constant(I64, size))


_mine = threading.local()


def threads() -> None:
    """As many numba threads in this thread as torch has been told to use; asked of numba only when that has changed."""
    if getattr(_mine, "count", None) != (count := torch.get_num_threads()):
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        _mine.count = count
