"""sparse_linear for few tokens in CUDA C++ (`gather.cu`), compiled where it runs by the NVRTC that torch brings.

Triton can say neither which lane reads what of shared memory nor that eight survivors are one load; both decide here.
"""

import ctypes
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fewer.layout import Gaps, Layout, Nm

SOURCE = pathlib.Path(__file__).with_name("gather.cu")
SHARED = 200 * 1024  # bytes of inputs that fit beside each other on a multiprocessor
NO_CONTEXT = 201  # what the driver says in a thread that has not used CUDA before
MOST = 16  # tokens; of 2:4 half as many, beyond which Triton's tensor cores are faster


@dataclass(frozen=True)
class Cut:
    """How a kernel is cut: threads a block, blocks a multiprocessor, steps of a warp whose loads are in flight together."""

    threads: int = 512
    blocks: int = 2
    ahead: int = 2


#   tokens: wide rows, of few survivors; other rows, of few survivors
GAPS = {
    1: (Cut(512, 2, 2), Cut(512, 3, 1), Cut(512, 4, 1), Cut(256, 6, 1)),
    2: (Cut(1024, 1, 2), Cut(1024, 1, 1), Cut(256, 4, 2), Cut(256, 4, 1)),
    4: (Cut(1024, 1, 1), Cut(1024, 1, 1), Cut(256, 4, 1), Cut(256, 4, 1)),
    8: (Cut(1024, 1, 1), Cut(1024, 1, 1), Cut(512, 1, 1), Cut(1024, 1, 1)),
}
NM = {
    1: (Cut(1024, 1, 2), Cut(1024, 1, 2), Cut(256, 4, 2), Cut(512, 3, 2)),
    2: (Cut(1024, 1, 2), Cut(1024, 1, 2), Cut(256, 4, 2), Cut(512, 1, 2)),
    4: (Cut(1024, 1, 2), Cut(1024, 1, 1), Cut(256, 4, 2), Cut(512, 1, 2)),
    8: (Cut(1024, 1, 2), Cut(1024, 1, 1), Cut(512, 1, 2), Cut(1024, 1, 2)),
}
WIDE, FEW = 8192, 7  # columns; survivors are few if there is one in so many weights


def able(w: Layout, x: Tensor) -> TypeGuard[Gaps | Nm]:
    """Whether a kernel here takes these: 16-bit weights and inputs of one kind, few tokens, N:M in whole eights."""
    few = 0 < x.shape[0] <= MOST // (1 + (isinstance(w, Nm) and (w.n, w.m) == (2, 4))) and compiler() is not None
    if not few or x.dtype not in (torch.bfloat16, torch.float16) or not isinstance(w, Gaps | Nm):
        return False
    if w.value.dtype != x.dtype or w.value.data_ptr() % 16 or not w.value.numel() or _shared(w, 1) > SHARED:
        return False
    return isinstance(w, Gaps) or _whole(w)


def _whole(w: Nm) -> bool:
    bits = (w.m - 1).bit_length()
    places = 0 < bits <= 4 and w.m == 1 << bits and w.n in (1, 2, 4, 8)
    return places and w.shape[1] % (8 * w.m // w.n) == 0 and w.place.data_ptr() % 4 == 0


def multiply(x: Tensor, w: Gaps | Nm, bias: Tensor | None, cut: Cut | None = None) -> Tensor:
    """`x @ w.T + bias` for `x` [tokens, in], in the dtype of `x`."""
    batch, rows = x.shape[0], w.shape[0]
    out = torch.empty(batch, rows, dtype=x.dtype, device=x.device)
    bias = bias if bias is None else bias.to(x.dtype).contiguous()
    done = 0
    while done < batch:
        tokens = next(t for t in (1, 2, 4, 8) if t >= min(batch - done, 8) or _shared(w, 2 * t) > SHARED)
        part, here = (x, out) if tokens == batch else (x[done : done + tokens], out[done : done + tokens])
        if (short := tokens - part.shape[0]) > 0:
            part, here = torch.nn.functional.pad(part, (0, 0, 0, short)), out.new_empty(tokens, rows)
        _launch(part.contiguous(), w, bias, here, cut or cut_for(w, tokens))
        if short > 0:
            out[done:] = here[:-short]
        done += tokens
    return out


def cut_for(w: Gaps | Nm, tokens: int) -> Cut:
    """From the tables, which hold what was fastest by `python -m bench.kernels.gather`."""
    which = 2 * (w.shape[1] <= WIDE) + (w.value.numel() * FEW < w.shape[0] * w.shape[1])
    return (GAPS if isinstance(w, Gaps) else NM)[tokens][which]


def _launch(x: Tensor, w: Gaps | Nm, bias: Tensor | None, out: Tensor, cut: Cut) -> None:
    tokens, device = x.shape[0], x.device.index
    x = x.clone() if x.data_ptr() % 16 else x
    where = (w.gap, w.start) if isinstance(w, Gaps) else (w.place,)
    run = _kernel(device, x.dtype == torch.float16, tokens, cut, _pattern(w), w.shape, _shared(w, tokens))
    run(*(t.data_ptr() for t in (x, w.value, *where)), 0 if bias is None else bias.data_ptr(), out.data_ptr())


@dataclass(frozen=True)
class _Kernel:
    """A compiled kernel and how it is launched: torch's own way to launch it costs the host far more."""

    compiled: Any  # keeps the machine code
    blocks: int
    cut: Cut
    shape: tuple[int, ...]
    shared: int
    device: int

    def __call__(self, *pointers: int) -> None:
        values = (ctypes.c_uint64 * (len(pointers) + 2))(*pointers, *self.shape)  # of an int, the lower half is read
        first = ctypes.addressof(values)
        each = (ctypes.c_void_p * len(values))(*range(first, first + 8 * len(values), 8))
        stream = ctypes.c_void_p(torch.cuda.current_stream(self.device).cuda_stream)
        size = (self.blocks, 1, 1, self.cut.threads, 1, 1, self.shared)
        args = (self.compiled.func, *size, stream, each, None)
        if (code := _driver().cuLaunchKernel(*args)) == NO_CONTEXT:
            torch.cuda.set_device(self.device)
            code = _driver().cuLaunchKernel(*args)
        if code:
            raise RuntimeError(f"gather.cu could not be launched: CUDA error {code}")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _pattern(w: Gaps | Nm) -> tuple[str, ...]:
    return ("GAPS",) if isinstance(w, Gaps) else (f"N={w.n}", f"M={w.m}", f"BITS={(w.m - 1).bit_length()}")


def _shared(w: Gaps | Nm, tokens: int) -> int:
    """Bytes of inputs that a block holds."""
    if isinstance(w, Gaps):
        return (w.shape[1] + 33) // 2 * 2 * 2 * tokens
    wide = 4 if tokens == 1 else 2 * tokens
    chunk = 8 * w.m // w.n
    return -(-w.shape[1] // (32 * chunk)) * 32 * chunk * wide


@lru_cache(maxsize=1024)
def _kernel(
    device: int, half: bool, tokens: int, cut: Cut, pattern: tuple[str, ...], shape: tuple[int, int], shared: int
) -> _Kernel:
    compiled = _compiled(device, half, tokens, cut, pattern, shared)
    resident = max(1, min(cut.blocks, SHARED // max(shared, 1)))
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    blocks = min(processors * resident, -(-shape[0] // (cut.threads // 32)))
    return _Kernel(compiled, blocks, cut, tuple(shape), shared, device)


@cache
def _compiled(device: int, half: bool, tokens: int, cut: Cut, pattern: tuple[str, ...], shared: int) -> Any:
    defined = {"HALF": int(half), "TOKENS": tokens, "AHEAD": cut.ahead, "THREADS": cut.threads, "BLOCKS": cut.blocks}
    text = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    text += "".join(f"#define {p.replace('=', ' ')}\n" for p in pattern)
    make = compiler()
    assert make is not None
    kernel = make(text + SOURCE.read_text(encoding="utf-8"), "run")
    kernel.set_shared_memory_config(shared)
    return kernel


@cache
def compiler() -> Callable[..., Any] | None:
    """torch's own way to compile CUDA C++ at run time; None where this torch has none."""
    return getattr(torch.cuda, "compile_kernel", None) or getattr(torch.cuda, "_compile_kernel", None)
