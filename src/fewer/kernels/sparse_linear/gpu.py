"""sparse_linear on a GPU: few tokens in CUDA C++ or Triton, bound by memory; many by cuSPARSELt for 2:4, else dense."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from fewer.layout import Bitmask, Bsr, Csr, Layout, Nm, Tiles

from . import _cuda, _cusparselt, _gpu, dense

MOST = (
    16  # tokens; beyond, but for 2:4, the product is bound by arithmetic, and cuBLAS on the unpacked weight is faster
)


@dataclass(frozen=True)
class Launch:
    """How a kernel is cut: rows a program owns, lanes it steps by, warps, shares of a row's columns, steps in flight."""

    rows: int
    lanes: int
    warps: int
    shares: int = 1
    stages: int = 1


FEW = 8192  # rows; below, too few programs to fill a large GPU unless each is wide

#                 one token                   up to MOST                  up to MOST, few rows
TABLE = {
    "bitmask": (Launch(4, 64, 2), Launch(16, 32, 2), Launch(16, 64, 4)),
    "two_four": (Launch(8, 128, 4), Launch(64, 32, 4, 4), Launch(64, 32, 4, 4)),
    "nm": (Launch(4, 64, 1), Launch(16, 64, 4), Launch(16, 64, 4)),
    "tiles": (Launch(0, 1024, 8), Launch(0, 128, 4, 1, 3), Launch(0, 64, 4, 4)),
    "bsr": (Launch(0, 512, 4, 1, 3), Launch(0, 128, 4, 1, 3), Launch(0, 128, 4, 2, 3)),
    "csr": (Launch(0, 512, 4), Launch(0, 64, 4), Launch(0, 64, 4)),
}


def sparse_linear(
    x: Float[Tensor, "*b n_in"], w: Layout, bias: Float[Tensor, " n_out"] | None = None, launch: Launch | None = None
) -> Float[Tensor, "*b n_out"]:
    """`launch` replaces the table's entry, for the benchmark that fills it."""
    flat = x.reshape(-1, x.shape[-1])
    batch, (rows, cols) = flat.shape[0], w.shape
    if launch is None and x.is_cuda and _cusparselt.able(w, flat):
        return _cusparselt.multiply(flat, w, bias).reshape(*x.shape[:-1], rows)
    if launch is None and x.is_cuda and _cuda.able(w, flat):
        return _cuda.multiply(flat, w, bias).reshape(*x.shape[:-1], rows)
    able = w.name in TABLE and 0 < batch <= MOST and x.dtype != torch.float64 and rows and cols
    if not able or (isinstance(w, Nm) and (not w.n or w.m & (w.m - 1) or w.m > 16)):
        return dense.sparse_linear(x, w, bias)
    launch = launch or TABLE["two_four" if _is_two_four(w) else w.name][(batch > 1) + (batch > 1 and rows < FEW)]
    shares = launch.shares
    out = torch.empty(shares, batch, rows, dtype=x.dtype if shares == 1 else torch.float32, device=x.device)
    given = dict(
        BIAS=bias is not None and shares == 1, LANES=launch.lanes, STAGES=launch.stages, num_warps=launch.warps
    )
    _RUN[type(w)](flat.contiguous(), w, flat.new_empty(0) if bias is None else bias, out, launch, given)
    if shares > 1:
        out = out.sum(0) if bias is None else out.sum(0) + bias
    return out.to(x.dtype).reshape(*x.shape[:-1], rows)


def _is_two_four(w: Layout) -> bool:
    """2:4 that can be read as a byte of places and a word of four values at a time."""
    if not isinstance(w, Nm) or (w.n, w.m) != (2, 4) or w.shape[1] % 8:
        return False
    return w.value.element_size() == 2 and w.value.data_ptr() % 8 == 0


def _tokens(batch: int) -> int:
    return 1 if batch == 1 else 16  # tensor cores take no fewer


def _turned(x: Tensor, tokens: int) -> Tensor:
    """[cols, tokens], so that a column's inputs are neighbours."""
    if len(x) < tokens:
        x = torch.nn.functional.pad(x, (0, 0, 0, tokens - len(x)))
    return x.T.contiguous()


def _span(groups: int, launch: Launch) -> int:
    """Columns of a share, in groups: a whole number of steps."""
    return triton.cdiv(triton.cdiv(groups, launch.shares), launch.lanes) * launch.lanes


def _bitmask(x, w: Bitmask, bias, out, launch, given):
    (rows, cols), groups = w.shape, w.mask.shape[1]
    _gpu.bitmask[(triton.cdiv(rows, launch.rows),)](
        x, w.value, w.mask, w.start, bias, out, rows, cols, groups, len(x),
        ROWS=launch.rows // 2, B=_tokens(len(x)), **given,
    )  # fmt: skip


def _nm(x, w: Nm, bias, out, launch, given):
    (rows, cols), grid = w.shape, (triton.cdiv(w.shape[0], launch.rows), launch.shares)
    if _is_two_four(w):
        _gpu.two_four[grid](
            x, w.value, w.place, bias, out, rows, cols, cols // 8, len(x), _span(cols // 8, launch),
            ROWS=launch.rows, B=_tokens(len(x)), **given,
        )  # fmt: skip
        return
    groups = cols // w.m
    _gpu.nm[grid](
        x, w.value, w.place, bias, out, rows, cols, groups, w.place.shape[1], len(x), _span(groups, launch),
        N=w.n, M=w.m, BITS=(w.m - 1).bit_length(), ROWS=launch.rows, B=_tokens(len(x)), **given,
    )  # fmt: skip


def _gathered(x, w: Tiles | Bsr | Csr, bias, out, launch, given):
    h, wide = (w.height, 1) if isinstance(w, Tiles) else w.unit if isinstance(w, Bsr) else (1, 1)
    rows, tokens = triton.next_power_of_2(h), _tokens(len(x))
    _gpu.gathered[(w.shape[0] // h, launch.shares)](
        x if tokens == 1 else _turned(x, tokens), w.value.contiguous(), w.column, w.start, bias, out,
        w.shape[0], len(x), H=h, W=wide, ROWS=rows if tokens == 1 else max(rows, 16), SHARES=launch.shares, B=tokens,
        **given,
    )  # fmt: skip


def _csr(x, w: Csr, bias, out, launch, given):
    if len(x) == 1:
        return _gathered(x, w, bias, out, launch, given)
    tokens = triton.next_power_of_2(len(x))
    given["LANES"] *= MOST // tokens  # as many products for each thread
    return _gpu.csr[(w.shape[0],)](
        _turned(x, tokens), w.value, w.column, w.start, bias, out, w.shape[0], len(x), B=tokens, **given
    )


_RUN: dict[type[Layout], Callable[..., None]] = {
    Bitmask: _bitmask,
    Nm: _nm,
    Tiles: _gathered,
    Bsr: _gathered,
    Csr: _csr,
}
