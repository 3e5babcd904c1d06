"""top_k with Triton: the key of the k-th largest, found bit by bit in registers or digit by digit over long rows.

A float's bits, with the negative ones turned over, rise as the float does, so every type is integers here. Nothing is
sorted and there are no atomics across programs: the result is the same at every run.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

_HELD = 65536  # rows up to here stay in one program's registers
_DIGIT = 4  # bits found in one pass over a long row: a histogram of few buckets is cheap, a pass runs at memory speed
_BLOCK = 4096  # of a long row at a time
_PROGRAMS = 2048  # enough to fill a GPU; beyond that each goes through several blocks


@triton.jit
def _key(bits, WIDTH: tl.constexpr):
    """A signed number that rises with the float; -0.0 is 0.0."""
    low: tl.constexpr = (1 << (WIDTH - 1)) - 1
    key = bits ^ ((bits >> (WIDTH - 1)) & low)
    return key + (key == -1).to(key.dtype)  # only -0.0 comes to -1


@triton.jit
def _short(bits, k, keep, rows, n, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """ROWS whole rows: raise the threshold bit by bit while k elements reach it, then share out its equals."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, COLS)
    inside = (row < rows)[:, None] & (col < n)[None, :]
    place = row[:, None] * n + col[None, :]
    low: tl.constexpr = (1 << (WIDTH - 1)) - 1
    key = tl.where(inside, _key(tl.load(bits + place, mask=inside, other=0), WIDTH), -low - 1)
    want = tl.load(k + row, mask=row < rows, other=0).to(tl.int32)
    last = tl.full([ROWS], -low - 1, key.dtype)  # the lowest key
    bit = last
    for _ in range(WIDTH):
        higher = last ^ bit
        enough = tl.sum((key >= higher[:, None]).to(tl.int32), axis=1) >= want  # what is outside never counts
        last = tl.where(enough, higher, last)
        bit = (bit >> 1) & low  # without the sign that >> copies
    above, equal = key > last[:, None], inside & (key == last[:, None])
    need = want - tl.sum(above.to(tl.int32), axis=1)
    early = tl.cumsum(equal.to(tl.int32), axis=1) <= need[:, None]
    tl.store(keep + place, above | (equal & early), mask=inside)


@triton.jit
def _count(
    bits, known, counts, n, chunks, decided, shift,
    DIGIT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Of one chunk: how many of each next digit, among the keys whose decided bits are the known ones."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    prefix = tl.load(known + row)
    size: tl.constexpr = 1 << DIGIT
    total = tl.zeros([2 * size], tl.int32)
    for i in range(CHUNK):
        col = (chunk * CHUNK + i) * BLOCK + tl.arange(0, BLOCK)
        key = _key(tl.load(bits + row * n + col, mask=col < n, other=0), WIDTH).to(tl.int64)
        alive = (col < n) & ((key & decided) == prefix)
        digit = ((key >> shift) & (size - 1)).to(tl.int32)
        others = size + (col & (size - 1)).to(tl.int32)  # out of the way
        total += tl.histogram(tl.where(alive, digit, others), 2 * size)
    bucket = tl.arange(0, 2 * size)
    tl.store(counts + (row * chunks + chunk) * size + bucket, total, mask=bucket < size)


@triton.jit
def _mark(bits, known, need, before, keep, n, chunks, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    """Of one chunk: everything above the threshold, and its equals while there is need."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    last, want = tl.load(known + row), tl.load(need + row)
    seen = tl.load(before + row * chunks + chunk)
    for i in range(CHUNK):
        col = (chunk * CHUNK + i) * BLOCK + tl.arange(0, BLOCK)
        key = _key(tl.load(bits + row * n + col, mask=col < n, other=0), WIDTH).to(tl.int64)
        equal = (col < n) & (key == last)
        early = seen + tl.cumsum(equal.to(tl.int64), axis=0) <= want
        tl.store(keep + row * n + col, (key > last) | (equal & early), mask=col < n)
        seen += tl.sum(equal.to(tl.int64), axis=0)


@triton.jit
def _choose(counts, known, need, chunks, shift, TOP: tl.constexpr, DIGIT: tl.constexpr, BLOCK: tl.constexpr):
    """Of one row: the digit at which the elements still needed run out; what lies above it is needed no more."""
    row, size = tl.program_id(0).to(tl.int64), 1 << DIGIT
    rank, chunk = tl.arange(0, 1 << DIGIT), tl.arange(0, BLOCK)
    low = size // 2 if TOP else 0  # the top digit has the sign
    total = tl.zeros([1 << DIGIT], tl.int64)
    for first in range(0, chunks, BLOCK):
        here = counts + (row * chunks + first + chunk)[:, None] * size + (rank ^ low)[None, :]
        total += tl.sum(tl.load(here, mask=(first + chunk < chunks)[:, None], other=0).to(tl.int64), 0)
    want = tl.load(need + row)
    reach = tl.sum(total, 0) - tl.cumsum(total, 0) + total  # how many have this digit or a higher one
    place = tl.maximum(tl.sum((reach >= want).to(tl.int64), 0) - 1, 0)
    tl.store(need + row, want - tl.sum(tl.where(rank > place, total, 0), 0))
    tl.store(known + row, tl.load(known + row) | ((place - low) << shift))


def _long(bits: Tensor, k: Tensor, keep: Tensor, width: int) -> None:
    """Digit by digit from the top: each program counts its chunk, and the sums say where the k-th largest lies."""
    rows, n = bits.shape
    chunk = min(16, triton.next_power_of_2(triton.cdiv(rows * n, _BLOCK * _PROGRAMS)))
    grid = (rows, triton.cdiv(n, _BLOCK * chunk))
    sizes = {"WIDTH": width, "BLOCK": _BLOCK, "CHUNK": chunk}
    counts = torch.empty(*grid, 1 << _DIGIT, dtype=torch.int32, device=bits.device)
    known = _copy(torch.zeros_like(k))
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        top = shift == width - _DIGIT
        decided = 0 if top else -(1 << (shift + _DIGIT))
        _count[grid](bits, known, counts, n, grid[1], decided, shift, DIGIT=_DIGIT, **sizes)
        _choose[(rows,)](counts, known, k, grid[1], shift, TOP=top, DIGIT=_DIGIT, BLOCK=64)
    last = (known & ((1 << _DIGIT) - 1))[:, None, None].expand(*grid, 1)
    equal = counts.gather(-1, last).squeeze(-1)
    before = _copy(equal.long().cumsum(-1) - equal)
    _mark[grid](bits, known, k, before, keep, n, grid[1], **sizes)


def _copy(x: Tensor) -> Tensor:
    """Kernels read what came in and what `torch.empty` made, so that `watch` knows where they may."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


def top_k(score: Float[Tensor, "*rows n"], k: int | Int[Tensor, "*rows"]) -> Bool[Tensor, "*rows n"]:
    keep = torch.empty(score.shape, dtype=torch.bool, device=score.device)
    n, width = score.shape[-1], score.element_size() * 8
    if not score.numel():
        return keep
    whole = score if score.is_contiguous() else _copy(score)
    bits = whole.view(-1, n).view(getattr(torch, f"int{width}"))
    if isinstance(k, int):  # without a word from the host, so that a CUDA graph can hold it
        each = torch.full((len(bits),), min(max(k, 0), n), device=score.device)
    else:
        each = _copy(k.expand(score.shape[:-1]).reshape(-1).long().clamp(0, n))
    if n > _HELD:
        _long(bits, each, keep, width)
        return keep
    cols = triton.next_power_of_2(n)
    per_program = max(1, 1024 // cols)
    grid, warps = (triton.cdiv(len(bits), per_program),), min(32, max(4, cols // 1024))
    _short[grid](bits, each, keep, len(bits), n, WIDTH=width, ROWS=per_program, COLS=cols, num_warps=warps)
    return keep
