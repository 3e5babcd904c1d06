"""2:4 with many tokens by NVIDIA's cuSPARSELt: the matrix units skip the zeros.

torch wraps the same library, but makes descriptors, algorithm and plan anew at every call (0.7 ms on the host, often longer
than the product itself), and takes the library's first algorithm, which is among its slow ones. Here a plan is made once for
a shape, with the algorithm that was fastest when all were tried on the spot. Structures are opaque bytes (cusparseLt.h).
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fewer.layout import Layout, Nm

from .cost import MANY_ON_GPU

KINDS = {torch.bfloat16: 14, torch.float16: 2}  # cudaDataType
ROW, COLUMN, PLAIN, TURNED, HALF_KEPT, FLOAT32 = 2, 1, 0, 1, 0, 2  # cusparseOrder_t, cusparseOperation_t, ...
ALGORITHM, LAST_ALGORITHM = 0, 1  # attributes of a choice of algorithm
SIZE = 16  # what the rows and columns of a sparse matrix are multiples of
BATCH = 64  # tokens: what their number is a multiple of
ALIGN, OPAQUE = 16, 16384  # bytes; no structure of any version is larger
TRIED = 21  # algorithms: all that bfloat16 has; of the more for float16, number 36 is an illegal instruction on an H100


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
    """`out = x @ w.T` for `w` [rows, cols] and `x` [tokens, cols], ready to run."""

    handle: _Opaque
    plan: _Opaque
    parts: tuple[_Opaque, ...]  # what the library keeps pointers to
    workspace: Tensor

    def run(self, w: Tensor, x: Tensor, out: Tensor) -> None:
        one, none = ctypes.c_float(1), ctypes.c_float(0)
        stream = ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream)
        a, b, d, room = (ctypes.c_void_p(t.data_ptr()) for t in (w, x, out, self.workspace))
        factors = ctypes.byref(one), ctypes.byref(none)
        _do("Matmul", self.handle.at, self.plan.at, factors[0], a, b, factors[1], d, d, room, ctypes.byref(stream), 1)


@dataclass(eq=False)
class _Product:
    """The description of a product: sparse `w` on the left, and the result by columns.

    By columns, [rows, tokens] is [tokens, rows] as torch lays it out. A plan keeps pointers to its own description, so
    each has one.
    """

    rows: int
    cols: int
    tokens: int
    dtype: torch.dtype
    device: int

    def __post_init__(self) -> None:
        self.handle, kind = _handle(self.device), KINDS[self.dtype]
        w = _matrix(self.handle, self.rows, self.cols, kind, sparse=True)
        x = _matrix(self.handle, self.tokens, self.cols, kind)
        out = _matrix(self.handle, self.rows, self.tokens, kind, COLUMN)
        self.product, self.choice = _Opaque(), _Opaque()
        self.parts = (w, x, out, self.product, self.choice)
        sides = (w.at, x.at, out.at, out.at)
        _do("MatmulDescriptorInit", self.handle.at, self.product.at, PLAIN, TURNED, *sides, FLOAT32)
        _do("MatmulAlgSelectionInit", self.handle.at, self.choice.at, self.product.at, 0)

    @property
    def algorithms(self) -> range:
        last = ctypes.c_int()
        size = ctypes.c_size_t(4)
        _do("MatmulAlgGetAttribute", self.handle.at, self.choice.at, LAST_ALGORITHM, ctypes.byref(last), size)
        return range(min(last.value, TRIED))

    def plan(self, algorithm: int) -> Plan:
        """Once only: the plan looks into this description while it runs, and the next one at what the last plan left."""
        number, size, plan = ctypes.c_int(algorithm), ctypes.c_size_t(), _Opaque()
        at = (self.handle.at, self.choice.at)
        _do("MatmulAlgSetAttribute", *at, ALGORITHM, ctypes.byref(number), ctypes.c_size_t(4))
        _do("MatmulPlanInit", self.handle.at, plan.at, self.product.at, self.choice.at)
        _do("MatmulGetWorkspace", self.handle.at, plan.at, ctypes.byref(size))
        return Plan(
            self.handle, plan, self.parts, torch.empty(max(size.value, 1), dtype=torch.uint8, device=self.device)
        )


def able(w: Layout, x: Tensor) -> TypeGuard[Nm]:
    """Whether the library takes these, and is faster: 2:4 in 16 bits, sizes in sixteens, as many tokens as it needs."""
    if (
        not isinstance(w, Nm)
        or (w.n, w.m) != (2, 4)
        or x.shape[0] < MANY_ON_GPU
        or x.dtype not in KINDS
        or w.value.dtype != x.dtype
    ):
        return False
    return min(w.shape) > 0 and not any(size % SIZE for size in w.shape) and library() is not None


def multiply(x: Tensor, w: Nm, bias: Tensor | None) -> Tensor:
    """`x @ w.T + bias` for `x` [tokens, in], in the dtype of `x`. The first call packs `w` as the library wants it.

    That packed form stays as long as `w` does: 9 bits a weight more.
    """
    few = x.shape[0]
    tokens = -(-few // BATCH) * BATCH
    padded = torch.nn.functional.pad(x, (0, 0, 0, tokens - few)) if tokens > few else x
    out = x.new_empty(tokens, w.shape[0])
    _plan(*w.shape, tokens, x.dtype, x.device.index or 0).run(_packed(w), padded.contiguous(), out)
    out = out[:few] if tokens > few else out
    return out if bias is None else out.add_(bias)


_ready: "WeakKeyDictionary[Nm, Tensor]" = WeakKeyDictionary()


def _packed(w: Nm) -> Tensor:
    if w not in _ready:
        _ready[w] = torch._cslt_compress(w.dense())
    return _ready[w]


@lru_cache(maxsize=256)
def _plan(rows: int, cols: int, tokens: int, dtype: torch.dtype, device: int) -> Plan:
    bucket = 1 << (tokens - 1).bit_length()  # the fastest algorithm is sought once for a size and its half
    return _Product(rows, cols, tokens, dtype, device).plan(_fastest(rows, cols, bucket, dtype, device))


@cache
def _fastest(rows: int, cols: int, tokens: int, dtype: torch.dtype, device: int) -> int:
    """The algorithm of the least time, each run a few times on random numbers. Not while a graph is captured."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("2:4 times its algorithms at the first call of a size: make that call before you capture it")
    kept = torch.tensor([1, 0, 1, 0], device=device, dtype=dtype).repeat(cols // 4)
    sparse = torch._cslt_compress(torch.randn(rows, cols, device=device, dtype=dtype) * kept)
    x = torch.randn(tokens, cols, device=device, dtype=dtype)
    out, best = x.new_empty(tokens, rows), (torch.inf, 0)
    for number in _Product(rows, cols, tokens, dtype, device).algorithms:
        try:
            plan = _Product(rows, cols, tokens, dtype, device).plan(number)
            plan.run(sparse, x, out)
        except RuntimeError:  # not for this size
            continue
        best = min(best, (_time(lambda plan=plan: plan.run(sparse, x, out)), number))  # type: ignore[misc]
    return best[1]


def _time(run: Callable[[], None]) -> float:
    times = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[2]
