"""sparse_linear with numba: stored small, widened in registers, summed in float32; a thread owns its rows."""

import weakref
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels._simd import PERMUTES, threads, view
from fewer.layout import Bitmask, Csr, Dense, Layout, Nm, Quantised, Spqr, Tiles

from . import _codes, _cpu, _entry, dense
from ._entry import Entry, bind
from .cost import row_scale

FEW = 8  # tokens: beyond, unpacking once for the vendor's product costs less
HEIGHTS = (4, 8, 16, 32)  # tiles that fill vectors
Product = Callable[[Tensor], np.ndarray]
Way = Callable[[Tensor, Tensor | None], Tensor]  # x and bias to y, with what is stored bound
_ways: weakref.WeakKeyDictionary[Layout, dict[int, Way | None]] = weakref.WeakKeyDictionary()  # by number of tokens


def sparse_linear(
    x: Float[Tensor, "*b n_in"], w: Layout, bias: Float[Tensor, " n_out"] | None = None
) -> Float[Tensor, "*b n_out"]:
    known = _ways.get(w)
    if known is None:
        known = _ways[w] = {}
    batch = x.numel() // w.shape[1] if w.shape[1] and x.dtype != torch.float64 else 0
    if batch not in known:
        known[batch] = _way(w, batch)
    way = known[batch]
    return dense.sparse_linear(x, w, bias) if way is None else way(x, bias)


def _way(w: Layout, batch: int) -> Way | None:
    """How to multiply so many tokens by `w`; None where there is no kernel. It holds the stored arrays, not `w`.

    Views of them are taken once: what is written into the layout's tensors later is seen, their replacement is another layout.
    """
    if not batch or any(not t.is_contiguous() or t.dtype == torch.float64 for t in w.tensors().values()):
        return None
    rows = w.shape[0]
    if batch == 1 and rows and (entry := _one(w)) is not None:
        return partial(_single, rows, entry)
    product = _product(w, batch)
    return None if product is None else partial(_several, rows, product)


def _single(rows: int, entry: Entry, x: Tensor, bias: Tensor | None) -> Tensor:
    """One token, with as few calls of torch as there can be."""
    threads()
    given = x if x.dtype == torch.float32 and x.is_contiguous() else x.float().contiguous()
    out = torch.empty((*x.shape[:-1], rows), dtype=torch.float32)
    add = bias if bias is None or (bias.dtype == torch.float32 and bias.is_contiguous()) else bias.float().contiguous()
    entry(given.data_ptr(), 0 if add is None else add.data_ptr(), out.data_ptr())
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def _several(rows: int, product: Product, x: Tensor, bias: Tensor | None) -> Tensor:
    flat = (x.detach() if x.requires_grad else x).reshape(-1, x.shape[-1]).float()
    threads()
    out = torch.from_numpy(product(flat.contiguous())[: len(flat)])
    if bias is not None:
        out += bias
    return out.to(x.dtype).view(*x.shape[:-1], rows)


def _one(w: Layout, scale: np.ndarray | None = None) -> Entry | None:
    """The loop for one token with the stored arrays bound, as a C function; None where there is none."""
    rows, cols = w.shape
    bound = partial(bind, cols=cols, rows=rows, scale=scale)
    match w:
        case Dense(value=value) if value.ndim == 2:
            return bound(_entry.dense, view(value))
        case Tiles(height=16):
            return bound(_entry.tiles16, view(w.value), view(w.column), view(w.start))
        case Csr():
            return bound(_entry.csr, view(w.value), view(w.column), view(w.start))
        case Bitmask() if PERMUTES:
            return bound(_entry.bitmask, view(w.value), view(w.mask), view(w.start))
        case Nm(n=2, m=4) if PERMUTES:
            return bound(_entry.two_four, view(w.value), view(w.place))
        case Quantised() if scale is None and (found := row_scale(w)) is not None:
            return _one(w.codes(), found.float().contiguous().numpy())
        case _:
            return None


def _product(w: Layout, batch: int) -> Product | None:
    """`x -> x @ w.T` for so many tokens, the stored arrays bound; None where there is no kernel."""
    rows = w.shape[0]
    match w:
        case Dense(value=value) if value.ndim == 2:
            return _whole(_cpu.dense, rows, view(value))
        case Tiles(height=height) if height in HEIGHTS:
            tokens = 1 if batch == 1 else 6 if -batch % 6 <= -batch % 4 else 4
            return _panels(_cpu.tiles(height), rows, tokens, view(w.value), view(w.column), view(w.start))
        case Csr():
            tokens = 4 if batch <= 8 else 16
            return _panels(_cpu.csr, rows, tokens, view(w.value), view(w.column), view(w.start))
        case Bitmask() if PERMUTES:
            run = _cpu.bitmask if batch <= 4 else _cpu.bitmask_unpacked
            return _whole(run, rows, view(w.value), view(w.mask), view(w.start))
        case Nm(n=2, m=4) if PERMUTES and batch <= 4:
            return _whole(_cpu.two_four, rows, view(w.value).reshape(-1), view(w.place))
        case Nm() if PERMUTES and w.n and w.m > 1:
            flat, bits = view(w.value).reshape(-1), (w.m - 1).bit_length()
            return _whole(_cpu.nm_unpacked, rows, flat, view(w.place), w.n, w.m, bits)
        case Quantised() if (scale := row_scale(w)) is not None:
            return _scaled(_product(w.codes(), batch), scale.float().T.contiguous().numpy())
        case Quantised(pattern=Dense()) | Spqr(body=Quantised(pattern=Dense())) if batch <= FEW:
            return _unpacked(w)
        case _:
            return None


def _scaled(codes: Product | None, scale: np.ndarray) -> Product | None:
    return None if codes is None else lambda x: codes(x) * scale


def _unpacked(w: Quantised | Spqr) -> Product:
    """Codes for every weight, and those that stand in the place of a few of them."""
    body = w.body if isinstance(w, Spqr) else w
    scale, zero = body.grid.tables()
    none = torch.zeros(0, len(scale))
    outlier = w.outlier if isinstance(w, Spqr) else Csr.pack(none, none != 0)
    start = outlier.start if isinstance(w, Spqr) else outlier.start.new_zeros(len(scale) + 1)
    value = body.value.view(torch.uint8) + 128 if body.bits == 8 else body.value
    given = (value.flatten(), body.bits, scale, zero, outlier.value.float(), outlier.column, start)
    stored = [g if isinstance(g, int) else view(g) for g in given]

    def product(x: Tensor) -> np.ndarray:
        out = np.empty((len(x), len(scale)), np.float32)
        _codes.codes(x.numpy(), *stored, out)
        return out

    return product


def _whole(run: Callable[..., None], rows: int, *stored: object) -> Product:
    """A loop that takes x as it is; two or three tokens are made four."""

    def product(x: Tensor) -> np.ndarray:
        x = torch.nn.functional.pad(x, (0, 0, 0, 4 - len(x))) if 1 < len(x) < 4 else x
        out = np.empty((len(x), rows), np.float32)
        run(x.numpy(), *stored, out)
        return out

    return product


def _panels(run: Callable[..., None], rows: int, tokens: int, *stored: object) -> Product:
    """A loop that takes x as [panels, in, tokens], the last panel padded: the inputs that one weight meets are neighbours."""

    def product(x: Tensor) -> np.ndarray:
        short = -len(x) % tokens
        x = torch.nn.functional.pad(x, (0, 0, 0, short)) if short else x
        across = x.view(-1, tokens, x.shape[1]).mT.contiguous()
        out = np.empty((len(x), rows), np.float32)
        run(across.numpy(), *stored, out)
        return out

    return product
