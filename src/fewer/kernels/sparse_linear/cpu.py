"""sparse_linear with numba: stored small, widened in registers, summed in float32; a thread owns its rows."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels._simd import PERMUTES, threads, view
from fewer.layout import Bitmask, Csr, Dense, Layout, Nm, Quantised, Spqr, Tiles

from . import _codes, _cpu, dense
from .cost import row_scale

FEW = 8  # tokens: beyond, unpacking once for the vendor's product costs less
HEIGHTS = (4, 8, 16, 32)  # tiles that fill vectors


def sparse_linear(
    x: Float[Tensor, "*b n_in"], w: Layout, bias: Float[Tensor, " n_out"] | None = None
) -> Float[Tensor, "*b n_out"]:
    rows = x.detach().reshape(-1, x.shape[-1]).float()
    with threads():
        out = None if x.dtype == torch.float64 or not rows.numel() else _multiply(rows, w)
    if out is None:
        return dense.sparse_linear(x, w, bias)
    if bias is not None:
        out += bias
    return out.to(x.dtype).reshape(*x.shape[:-1], w.shape[0])


def _multiply(x: Tensor, w: Layout) -> Tensor | None:
    """`x @ w.T` in float32; None where there is no kernel."""
    batch = len(x)
    match w:
        case Tiles(height=height) if height in HEIGHTS:
            across = _columns(x, 1 if batch == 1 else 4)
            out = np.empty((across.shape[1], w.shape[0]), np.float32)
            _cpu.tiles(height)(across, view(w.value), view(w.column), view(w.start), out)
            return torch.from_numpy(out[:batch])
        case Csr() if batch == 1:
            out = np.empty((1, w.shape[0]), np.float32)
            _cpu.csr_one(x[0].contiguous().numpy(), view(w.value), view(w.column), view(w.start), out[0])
            return torch.from_numpy(out)
        case Csr():
            across = _columns(x, 8)
            turned = np.empty((w.shape[0], across.shape[1]), np.float32)
            _cpu.csr(across, view(w.value), view(w.column), view(w.start), turned)
            return torch.from_numpy(turned).T[:batch].contiguous()
        case Bitmask() | Nm() if PERMUTES and w.value.numel() >= 8 and getattr(w, "m", 2) > 1:
            return _bitwise(x, w)
        case Quantised() if (scale := row_scale(w)) is not None:
            product = _multiply(x, w.codes())
            return None if product is None else product * scale.float().T
        case Quantised(pattern=Dense()) | Spqr(body=Quantised(pattern=Dense())) if batch <= FEW:
            return _unpacked(x, w)
        case _:
            return None


def _unpacked(x: Tensor, w: Quantised | Spqr) -> Tensor:
    """Codes for every weight, and those that stand in the place of a few of them."""
    body = w.body if isinstance(w, Spqr) else w
    scale, zero = body.grid.tables()
    outlier = w.outlier if isinstance(w, Spqr) else Csr.pack(x[:0], x[:0] != 0)
    start = outlier.start if isinstance(w, Spqr) else outlier.start.new_zeros(len(scale) + 1)
    value = body.value.view(torch.uint8) + 128 if body.bits == 8 else body.value
    out = np.empty((len(x), len(scale)), np.float32)
    given = (value.flatten(), body.bits, scale, zero, outlier.value.float(), outlier.column, start)
    _codes.codes(x.contiguous().numpy(), *(g if isinstance(g, int) else view(g) for g in given), out)
    return torch.from_numpy(out)


def _bitwise(x: Tensor, w: Bitmask | Nm) -> Tensor:
    """Layouts whose survivors are bits of eight columns."""
    more = 0 if len(x) == 1 else -len(x) % (4 if len(x) <= 4 else 8)
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % 8, 0, more)).contiguous().numpy()
    out = np.empty((len(padded), w.shape[0]), np.float32)
    if isinstance(w, Bitmask):
        _cpu.bitmask(padded, view(w.value), view(w.mask), view(w.start), out)
    else:
        bits = (w.m - 1).bit_length()
        _cpu.nm(padded, view(w.value).reshape(-1), view(w.place), w.n, w.m, bits, _TWO_FOUR, out)
    return torch.from_numpy(out[: len(x)])


# a byte holds the places of four 2:4 weights: two in each half of eight columns
_TWO_FOUR = np.array(
    [1 << (p & 3) | 1 << (p >> 2 & 3) | 16 << (p >> 4 & 3) | 16 << (p >> 6) for p in range(256)], np.uint8
)


def _columns(x: Tensor, multiple: int) -> np.ndarray:
    """x as [in, batch], the batch padded: the inputs that one weight meets are neighbours."""
    return torch.nn.functional.pad(x, (0, 0, 0, -len(x) % multiple)).T.contiguous().numpy()
