"""The loops for one token as C functions: between two tokens a cache is full of weights, and each line of Python is cold.

`bind` fixes all but the addresses of input, bias and output, and the finish (a scale a row, the bias) is done on the way.
"""

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba as nb
import numpy as np
from numba import carray, types

from fewer.kernels._simd import threads

from . import _cpu

Entry = Callable[[int, int, int], None]  # addresses of x, bias (0: none) and out
MANY = 3  # arrays of a layout
KIND = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (MANY + 4), *[ctypes.c_ssize_t] * (MANY + 4))

_tiles16 = _cpu.tiles(16)
_csr_one, _bitmask, _two_four, _dense = _cpu.csr_one, _cpu.bitmask, _cpu.two_four, _cpu.dense


@nb.njit(cache=True)
def _finish(out, scale, bias):
    if len(scale):
        for i in range(len(out)):
            out[i] *= scale[i]
    if len(bias):
        for i in range(len(out)):
            out[i] += bias[i]


def tiles16(a, b, c, scale, x, bias, out, n_a, n_b, n_c, cols, rows, scaled, biased):
    y = carray(out, (1, rows))
    _tiles16(carray(x, (1, cols, 1)), carray(a, (n_a // 16, 16)), carray(b, (n_b,)), carray(c, (n_c,)), y)
    _finish(y[0], carray(scale, (scaled,)), carray(bias, (biased,)))


def csr(a, b, c, scale, x, bias, out, n_a, n_b, n_c, cols, rows, scaled, biased):
    y = carray(out, (1, rows))
    _csr_one(carray(x, (1, cols)), carray(a, (n_a,)), carray(b, (n_b,)), carray(c, (n_c,)), y)
    _finish(y[0], carray(scale, (scaled,)), carray(bias, (biased,)))


def bitmask(a, b, c, scale, x, bias, out, n_a, n_b, n_c, cols, rows, scaled, biased):
    y = carray(out, (1, rows))
    _bitmask(carray(x, (1, cols)), carray(a, (n_a,)), carray(b, (rows, n_b // rows)), carray(c, (n_c,)), y)
    _finish(y[0], carray(scale, (scaled,)), carray(bias, (biased,)))


def two_four(a, b, c, scale, x, bias, out, n_a, n_b, n_c, cols, rows, scaled, biased):
    y = carray(out, (1, rows))
    _two_four(carray(x, (1, cols)), carray(a, (n_a,)), carray(b, (rows, n_b // rows)), y)
    _finish(y[0], carray(scale, (scaled,)), carray(bias, (biased,)))


def dense(a, b, c, scale, x, bias, out, n_a, n_b, n_c, cols, rows, scaled, biased):
    y = carray(out, (1, rows))
    _dense(carray(x, (1, cols)), carray(a, (rows, cols)), y)
    _finish(y[0], carray(scale, (scaled,)), carray(bias, (biased,)))


@lru_cache
def _compiled(loop: Callable[..., None], kinds: tuple[str, ...]) -> Any:
    """The C function for arrays of these dtypes."""
    real = types.CPointer(types.float32)
    stored = [types.CPointer(getattr(types, kind)) for kind in kinds]
    signature = types.void(*stored, real, real, real, real, *[types.intp] * (MANY + 4))
    return nb.cfunc(signature, cache=True)(loop)


def bind(loop: Callable[..., None], *stored: np.ndarray, cols: int, rows: int, scale: np.ndarray | None) -> Entry:
    """`loop` on these arrays: up to three, and the scales of the rows."""
    threads()  # a C function that comes from numba's cache finds its threads only if they are there before it
    none = np.zeros(0, np.int32)
    arrays = [a.reshape(-1) for a in stored] + [none] * (MANY - len(stored))
    scales = np.zeros(0, np.float32) if scale is None else scale.reshape(-1)
    made = _compiled(loop, tuple(a.dtype.name for a in arrays))
    call = KIND(made.address)
    before = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, scales)]
    after = [ctypes.c_ssize_t(n) for n in (*(a.size for a in arrays), cols, rows, scales.size)]

    def entry(x: int, bias: int, out: int, keep: object = (made, arrays, scales)) -> None:
        call(*before, x, bias, out, *after, rows if bias else 0)

    return entry
