"""2:4 with many tokens by NVIDIA's cuSPARSELt: the matrix units skip the zeros.

torch wraps the same library, but sets up handle, descriptors, algorithm and plan anew at every call (0.7 ms on the host, longer
than the product itself) and writes the result in an order for which the library has slow kernels only. Here a plan
is made once for a shape, with the fastest algorithm as timed on the spot. Structures are opaque bytes (cusparseLt.h).
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

KINDS = {torch.bfloat16: 14, torch.float16: 2}  # cudaDataType
ROW, COLUMN, PLAIN, TURNED, HALF_KEPT, FLOAT32 = 2, 1, 0, 1, 0, 2  # cusparseOrder_t, cusparseOperation_t, ...
BIAS_POINTER, ALGORITHM, LAST_ALGORITHM = 8, 0, 1  # attributes of a product, of a choice of algorithm
ALIGN, OPAQUE = 16, 16384  # bytes; no structure of any version is larger


class _Opaque:
    """A structure of the library, aligned."""

    def __init__(self) -> None:
        self.room = ctypes.create_string_buffer(OPAQUE + ALIGN)
        self.at = ctypes.c_void_p(-(-ctypes.addressof(self.room) // ALIGN) * ALIGN)


@cache
def library() -> ctypes.CDLL | None:
    """The copy that torch has loaded; None where there is none."""
    if not torch.cuda.is_available() or not torch.backends.cusparselt.is_available():
        return None
    try:
        return ctypes.CDLL("libcusparseLt.so.0")
    except OSError:
        return None


def _do(name: str, *args: Any) -> None:
    lib = library()
    assert lib is not None
    if code := getattr(lib, f"cusparseLt{name}")(*args):
        raise RuntimeError(f"cusparseLt{name} failed with status {code}")


@cache
def _handle(device: int) -> _Opaque:
    handle = _Opaque()
    with torch.cuda.device(device):
        _do("Init", handle.at)
    return handle


def _matrix(h: _Opaque, rows: int, cols: int, kind: int, order: int = ROW, sparse: bool = False) -> _Opaque:
    out, long = _Opaque(), ctypes.c_int64
    ld = cols if order == ROW else rows
    shape = (long(rows), long(cols), long(ld), ctypes.c_uint32(ALIGN), kind, order)
    _do("StructuredDescriptorInit" if sparse else "DenseDescriptorInit", h.at, out.at, *shape, *[HALF_KEPT] * sparse)
    return out


@dataclass(eq=False)
class Plan:
    """The product of one shape: `out = w @ x.T` for `w` [rows, cols] and `x` [tokens, cols], or its transpose."""

    handle: _Opaque
    plan: _Opaque
    parts: tuple[Any, ...]  # what the library keeps pointers to
    workspace: Tensor

    def run(self, w: Tensor, x: Tensor, out: Tensor) -> None:
        one, none, stream = (
            ctypes.c_float(1),
            ctypes.c_float(0),
            ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
        )
        w_, x_, out_, room = (ctypes.c_void_p(t.data_ptr()) for t in (w, x, out, self.workspace))
        _do(
            "Matmul",
            self.handle.at,
            self.plan.at,
            ctypes.byref(one),
            w_,
            x_,
            ctypes.byref(none),
            out_,
            out_,
            room,
            ctypes.byref(stream),
            1,
        )


def make(rows: int, cols: int, tokens: int, dtype: torch.dtype, device: int, order: int, algorithm: int) -> Plan:
    """`order` ROW: out is [rows, tokens]; COLUMN: the same numbers as [tokens, rows]."""
    h, kind = _handle(device), KINDS[dtype]
    a = _matrix(h, rows, cols, kind, sparse=True)
    b = _matrix(h, tokens, cols, kind)
    d = _matrix(h, rows, tokens, kind, order)
    product, choice, plan = _Opaque(), _Opaque(), _Opaque()
    _do("MatmulDescriptorInit", h.at, product.at, PLAIN, TURNED, a.at, b.at, d.at, d.at, FLOAT32)
    _do("MatmulAlgSelectionInit", h.at, choice.at, product.at, 0)
    number = ctypes.c_int(algorithm)
    _do("MatmulAlgSetAttribute", h.at, choice.at, ALGORITHM, ctypes.byref(number), ctypes.c_size_t(4))
    _do("MatmulPlanInit", h.at, plan.at, product.at, choice.at)
    size = ctypes.c_size_t()
    _do("MatmulGetWorkspace", h.at, plan.at, ctypes.byref(size))
    workspace = torch.empty(max(size.value, 1), dtype=torch.uint8, device=device)
    return Plan(h, plan, (a, b, d, product, choice), workspace)


def algorithms(rows: int, cols: int, tokens: int, dtype: torch.dtype, device: int, order: int) -> int:
    """How many algorithms the library has for this product."""
    h, kind = _handle(device), KINDS[dtype]
    a, b, d = (
        _matrix(h, rows, cols, kind, sparse=True),
        _matrix(h, tokens, cols, kind),
        _matrix(h, rows, tokens, kind, order),
    )
    product, choice, last = _Opaque(), _Opaque(), ctypes.c_int()
    _do("MatmulDescriptorInit", h.at, product.at, PLAIN, TURNED, a.at, b.at, d.at, d.at, FLOAT32)
    _do("MatmulAlgSelectionInit", h.at, choice.at, product.at, 0)
    _do("MatmulAlgGetAttribute", h.at, choice.at, LAST_ALGORITHM, ctypes.byref(last), ctypes.c_size_t(4))
    return last.value
