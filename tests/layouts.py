"""Matrices and patterns to store, and readers of what was stored, written as loops."""

import json
import math

import torch
from hypothesis import settings
from hypothesis import strategies as st

from fewer.layout import Bitmask, Bsr, Csr, Dense, Layout, Nm, Tiles

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
EXACT = [Bitmask, Csr, Nm, Tiles, Bsr]  # 2-D layouts that hold kept zeros
FLAT = [*EXACT, Dense]
quick = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**20)
dtypes = st.sampled_from(DTYPES)


def matrix(shape, dtype, make):
    """Random values, and some that trip: zeros, negative zeros, and for floats infinities and NaN."""
    x = (torch.randn(shape, generator=make) * 40).round().to(dtype)
    if dtype.is_floating_point and x.numel():
        odd = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-3]).to(dtype)
        where = torch.rand(shape, generator=make) < 0.3
        x[where] = odd[torch.randint(len(odd), (int(where.sum()),), generator=make)]
    return x


def flags(shape, make, density=None):
    density = torch.rand((), generator=make).mul(1.4).sub(0.2) if density is None else density  # often none or all
    return torch.rand(shape, generator=make) < density


def held_by(kind, rows, cols, make):
    """A pattern, of about this size, that this layout can hold, and how to pack it."""
    if kind is Nm:
        m = [1, 2, 4, 6, 8, 16][int(torch.randint(6, (), generator=make))]
        n = int(torch.randint(m + 1, (), generator=make))
        groups = torch.rand(rows, math.ceil(cols / m), m, generator=make)
        return (groups.argsort(-1).argsort(-1) < n).flatten(1), {"m": m}
    if kind is Tiles or kind is Bsr:
        h, w = (int(torch.randint(1, 5, (), generator=make)) for _ in range(2))
        w = 1 if kind is Tiles else w
        keep = flags((math.ceil(rows / h), math.ceil(cols / w)), make).repeat_interleave(h, 0).repeat_interleave(w, 1)
        return keep, {"height": h} if kind is Tiles else {"unit": (h, w)}
    return flags((rows, cols), make), {}


def a_matrix(kind, rows, cols, seed, dtype):
    make = torch.Generator().manual_seed(seed)
    keep, how = held_by(kind, rows, cols, make)
    return matrix(keep.shape, dtype, make), keep, how


def same_bits(a, b):
    bits = BITS[a.element_size()]
    return (
        a.dtype is b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))
    )


def masked(x, keep):
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


def reloaded(a: Layout) -> Layout:
    return type(a).restore(a.tensors(), json.loads(json.dumps(a.numbers())))


def read_by_hand(a):
    """(row, column) -> value of what is stored, in loops, from the words of each class's docstring."""
    out, bit = {}, lambda row, i: row[i // 8] >> (i % 8) & 1
    if isinstance(a, Bitmask):
        for i, row in enumerate(a.mask.tolist()):
            t = int(a.start[i])
            for j in range(a.shape[1]):
                if bit(row, j):
                    out[i, j], t = a.value[t], t + 1
            assert t == int(a.start[i + 1])
    elif isinstance(a, Csr):
        for i in range(a.shape[0]):
            for t in range(int(a.start[i]), int(a.start[i + 1])):
                out[i, int(a.column[t])] = a.value[t]
    elif isinstance(a, Nm):
        width = math.ceil(math.log2(a.m))
        for i, row in enumerate(a.place.tolist()):
            for t in range(a.value.shape[1]):
                place = sum(bit(row, t * width + b) << b for b in range(width))
                out[i, t // a.n * a.m + place] = a.value[i, t]
    else:
        h, w = (a.height, 1) if isinstance(a, Tiles) else a.value.shape[1:]
        for b in range(a.shape[0] // h):
            for t in range(int(a.start[b]), int(a.start[b + 1])):
                for r in range(h):
                    for c in range(w):
                        out[b * h + r, int(a.column[t]) * w + c] = a.value[t].reshape(h, w)[r, c]
    return out


def bytes_by_hand(kind, keep, item, how):
    (rows, cols), kept = keep.shape, int(keep.sum())
    if kind is Bitmask:
        return kept * item + rows * math.ceil(cols / 8) + 4 * (rows + 1)
    if kind is Csr:
        return kept * (item + 2) + 4 * (rows + 1)
    if kind is Nm:
        in_row = kept // rows
        return kept * item + rows * math.ceil(in_row * math.ceil(math.log2(how["m"])) / 8)
    if kind is Dense:
        return rows * cols * item
    h, w = how.get("unit", (how.get("height"), 1))
    return kept * item + 2 * kept // (h * w) + 4 * (rows // h + 1)
