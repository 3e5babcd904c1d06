"""sparse_linear with Triton: up to 16 tokens, bound by memory; beyond, and for other layouts, dense."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from fewer.layout import Bitmask, Bsr, Csr, Layout, Nm, Tiles

from . import _gpu, dense

MOST = 16  # tokens; beyond, the product is bound by arithmetic, and cuBLAS on the unpacked weight is faster


@dataclass(frozen=True)
class Launch:
    """How a kernel is cut: rows a program owns, lanes it steps by, warps, and shares a row's columns are cut into."""

    rows: int
    lanes: int
    warps: int
    shares: int = 1


#                    one token             up to MOST
TABLE = {
    "bitmask": (Launch(2, 64, 1), Launch(16, 64, 4, 4)),
    "nm": (Launch(4, 256, 4), Launch(16, 64, 4, 4)),
    "tiles": (Launch(0, 128, 4, 2), Launch(0, 128, 4, 2)),
    "bsr": (Launch(0, 128, 4, 2), Launch(0, 128, 4, 2)),
    "csr": (Launch(0, 512, 2), Launch(0, 64, 2)),
}


def sparse_linear(
    x: Float[Tensor, "*b n_in"], w: Layout, bias: Float[Tensor, " n_out"] | None = None, launch: Launch | None = None
) -> Float[Tensor, "*b n_out"]:
    """`launch` replaces the table's entry, for the benchmark that fills it."""
    flat = x.reshape(-1, x.shape[-1])
    batch, (rows, cols) = len(flat), w.shape
    able = w.name in TABLE and 0 < batch <= MOST and x.dtype != torch.float64 and rows and cols
    if not able or (isinstance(w, Nm) and (not w.n or w.m & (w.m - 1) or w.m > 16)):
        return dense.sparse_linear(x, w, bias)
    launch = launch or TABLE[w.name][batch > 1]
    shares = launch.shares
    out = torch.empty(shares, batch, rows, dtype=x.dtype if shares == 1 else torch.float32, device=x.device)
    tokens = 1 if batch == 1 else 16
    given = dict(B=tokens, BIAS=bias is not None and shares == 1, LANES=launch.lanes, num_warps=launch.warps)
    _RUN[type(w)](flat.contiguous(), w, flat.new_empty(0) if bias is None else bias, out, launch, given)
    if shares > 1:
        out = out.sum(0) if bias is None else out.sum(0) + bias
    return out.to(x.dtype).reshape(*x.shape[:-1], rows)


def _permuted(x: Tensor, group: int, tokens: int) -> Tensor:
    """One token: as it is. More: [place in group, group, token], so that a lane's inputs are neighbours."""
    if tokens == 1:
        return x
    x = torch.nn.functional.pad(x, (0, -x.shape[1] % group, 0, tokens - len(x)))
    return x.reshape(tokens, -1, group).permute(2, 1, 0).contiguous()


def _bitmask(x, w: Bitmask, bias, out, launch, given):
    (rows, cols), groups = w.shape, w.mask.shape[1]
    span = triton.cdiv(triton.cdiv(groups, launch.shares), launch.lanes) * launch.lanes
    _gpu.bitmask[(triton.cdiv(rows, launch.rows), launch.shares)](
        _permuted(x, 8, given["B"]), w.value, w.mask, w.start, bias, out,
        rows, cols, groups, out.shape[1], span, ROWS=launch.rows, **given,
    )  # fmt: skip


def _nm(x, w: Nm, bias, out, launch, given):
    (rows, cols), groups = w.shape, w.shape[1] // w.m
    span = triton.cdiv(triton.cdiv(groups, launch.shares), launch.lanes) * launch.lanes
    pairs = w.n == 2 and w.value.element_size() == 2 and w.value.data_ptr() % 4 == 0
    _gpu.nm[(triton.cdiv(rows, launch.rows), launch.shares)](
        _permuted(x, w.m, given["B"]), w.value, w.place, bias, out,
        rows, cols, groups, w.place.shape[1], out.shape[1], span,
        N=w.n, M=w.m, BITS=(w.m - 1).bit_length(), PAIRS=pairs, ROWS=launch.rows, **given,
    )  # fmt: skip


def _gathered(x, w: Tiles | Bsr | Csr, bias, out, launch, given):
    h, wide = (w.height, 1) if isinstance(w, Tiles) else w.unit if isinstance(w, Bsr) else (1, 1)
    rows = triton.next_power_of_2(h)
    x = x if given["B"] == 1 else _permuted(x, 1, given["B"])
    _gpu.gathered[(w.shape[0] // h, launch.shares)](
        x, w.value.contiguous(), w.column, w.start, bias, out, w.shape[0], out.shape[1],
        H=h, W=wide, ROWS=rows if given["B"] == 1 else max(rows, 16), SHARES=launch.shares, **given,
    )  # fmt: skip


_RUN: dict[type[Layout], Callable[..., None]] = {
    Bitmask: _bitmask,
    Nm: _nm,
    Tiles: _gathered,
    Bsr: _gathered,
    Csr: _gathered,
}
