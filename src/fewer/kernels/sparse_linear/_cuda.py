"""sparse_linear for few tokens in CUDA C++ (`gather.cu`), compiled where it runs by the NVRTC that torch brings.

Triton can say neither which lane reads what of shared memory nor that eight survivors are one load; both decide here.
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fewer.layout import Gaps, Layout, Nm

SOURCE = pathlib.Path(__file__).with_name("gather.cu")
SHARED = 200 * 1024  # bytes of inputs that fit beside each other on a multiprocessor
MOST = 16  # tokens of gaps; of N:M half as many, beyond which Triton's tensor cores are faster


@dataclass(frozen=True)
class Cut:
    """How a kernel is cut: threads a block, blocks a multiprocessor, steps of a warp whose loads are in flight together."""

    threads: int = 512
    blocks: int = 2
    ahead: int = 2


#                tokens: long rows, short rows
GAPS = {1: (Cut(512, 2, 2), Cut(1024, 2, 1)), 2: (Cut(512, 2, 2), Cut(1024, 1, 1))}
GAPS |= {4: (Cut(512, 1, 2), Cut(1024, 1, 1)), 8: (Cut(512, 1, 1), Cut(1024, 1, 1))}
NM = {1: (Cut(1024, 2, 2), Cut(1024, 1, 2)), 2: (Cut(512, 2, 2), Cut(1024, 1, 2))}
NM |= {4: (Cut(512, 1, 2), Cut(1024, 1, 2)), 8: (Cut(512, 1, 2), Cut(1024, 1, 2))}
LONG = 1024  # survivors a row: four steps of a warp


def able(w: Layout, x: Tensor) -> TypeGuard[Gaps | Nm]:
    """Whether a kernel here takes these: 16-bit weights and inputs of one kind, few tokens, N:M in whole eights."""
    few = 0 < len(x) <= MOST // (1 + isinstance(w, Nm)) and compiler() is not None
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
    rows = w.shape[0]
    out = torch.empty(len(x), rows, dtype=x.dtype, device=x.device)
    done = 0
    while done < len(x):
        tokens = next(t for t in (1, 2, 4, 8) if t >= min(len(x) - done, 8) or _shared(w, 2 * t) > SHARED)
        part = x[done : done + tokens]
        padded = part if len(part) == tokens else torch.nn.functional.pad(part, (0, 0, 0, tokens - len(part)))
        here = out[done : done + tokens] if len(part) == tokens else out.new_empty(tokens, rows)
        _launch(padded.contiguous(), w, bias, here, cut or cut_for(w, tokens))
        if len(part) < tokens:
            out[done:] = here[: len(part)]
        done += tokens
    return out


def cut_for(w: Gaps | Nm, tokens: int) -> Cut:
    """From the tables, which `python -m bench.kernels.gpu --tune` fills."""
    short = w.value.numel() < LONG * w.shape[0]
    return (GAPS if isinstance(w, Gaps) else NM)[tokens][short]


def _launch(x: Tensor, w: Gaps | Nm, bias: Tensor | None, out: Tensor, cut: Cut) -> None:
    tokens, (rows, cols) = len(x), w.shape
    shared = _shared(w, tokens)
    kernel = _kernel(x.device.index or 0, x.dtype == torch.float16, tokens, cut, _pattern(w), shared)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    resident = max(1, min(cut.blocks, 2 * SHARED // max(shared, 1) // 2))
    grid = min(processors * resident, -(-rows // (cut.threads // 32)))
    where = (w.gap, w.start) if isinstance(w, Gaps) else (w.place,)
    args = [x, w.value, *where, x.new_empty(0) if bias is None else bias, out, rows, cols]
    kernel(grid=(grid, 1, 1), block=(cut.threads, 1, 1), args=args, shared_mem=shared)


def _pattern(w: Gaps | Nm) -> tuple[str, ...]:
    return ("GAPS",) if isinstance(w, Gaps) else (f"N={w.n}", f"M={w.m}", f"BITS={(w.m - 1).bit_length()}")


def _shared(w: Gaps | Nm, tokens: int) -> int:
    """Bytes of inputs that a block holds."""
    wide = 4 if tokens == 1 else 2 * tokens
    if isinstance(w, Gaps):
        return (w.shape[1] + 32) * wide
    chunk = 8 * w.m // w.n
    return -(-w.shape[1] // (32 * chunk)) * 32 * chunk * wide


@cache
def _kernel(device: int, half: bool, tokens: int, cut: Cut, pattern: tuple[str, ...], shared: int) -> Any:
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
