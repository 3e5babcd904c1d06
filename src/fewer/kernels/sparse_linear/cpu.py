"""sparse_linear with numba: stored small, widened in registers, summed in float32; a thread owns its rows."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels._simd import PERMUTES, threads, view
from fewer.layout import Bitmask, Csr, Layout, Nm, Tiles

from . import _cpu, dense

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
    batch, out = len(x), (np.empty if w.shape[0] else np.zeros)((len(x), w.shape[0]), np.float32)
    match w:
        case Tiles(height=height) if height in HEIGHTS:
            across = _columns(x, 1 if batch == 1 else 4)
            out = np.empty((across.shape[1], w.shape[0]), np.float32)
            _cpu.tiles(height)(across, view(w.value), view(w.column), view(w.start), out)
        case Csr() if batch == 1:
            _cpu.csr_one(x[0].contiguous().numpy(), view(w.value), view(w.column), view(w.start), out[0])
        case Csr():
            return _across(_cpu.csr, x, w, view(w.value), view(w.column), view(w.start))
        case Nm(n=2, m=4) if batch == 1 and w.shape[1] % 8 == 0:
            _cpu.two_four_one(x[0].contiguous().numpy(), view(w.value), view(w.place), out[0])
        case Nm() if w.n:
            bits = (w.m - 1).bit_length()
            return _across(_cpu.nm, x, w, view(w.value), view(w.place), w.n, w.m, bits)
        case Bitmask() if len(w.value) >= 8 and PERMUTES:
            padded = torch.nn.functional.pad(x, (0, -x.shape[1] % 16, 0, 0 if batch == 1 else -batch % 4))
            out = np.empty((len(padded), w.shape[0]), np.float32)
            _cpu.bitmask(padded.contiguous().numpy(), view(w.value), view(w.mask), view(w.start), out)
        case _:
            return None
    return torch.from_numpy(out[:batch])


def _columns(x: Tensor, multiple: int) -> np.ndarray:
    """x as [in, batch], the batch padded: the inputs that one weight meets are neighbours."""
    return torch.nn.functional.pad(x, (0, 0, 0, -len(x) % multiple)).T.contiguous().numpy()


def _across(kernel, x: Tensor, w: Layout, *stored) -> Tensor:
    """A kernel that is vectorised over the batch: it sees, and gives, transposed matrices."""
    across = _columns(x, 8)
    out = np.empty((w.shape[0], across.shape[1]), np.float32)
    kernel(across, *stored, out)
    return torch.from_numpy(out).T[: len(x)].contiguous()
