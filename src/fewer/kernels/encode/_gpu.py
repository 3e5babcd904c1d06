"""The k best of long rows, with Triton: groups are ranked by their best, and only k groups are looked into.

Whatever is among the k best lies in one of the k groups whose best is highest (ties to the front): were it in another,
each of those k would hold one that comes before it. So all that is read of a row twice is k groups.
"""

import triton
import triton.language as tl

from fewer.kernels.top_k.gpu import _key


@triton.jit
def ranked(bits, BY_SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """A number that rises with what is ranked; -0.0 is 0.0."""
    if BY_SIZE:
        low: tl.constexpr = (1 << (WIDTH - 1)) - 1
        key = bits & low
    else:
        key = _key(bits, WIDTH)
    return key


@triton.jit
def _best(key, inside, want, WIDTH: tl.constexpr):
    """True at the `want` highest of a row in registers; equals from the front. A threshold is raised bit by bit."""
    low: tl.constexpr = (1 << (WIDTH - 1)) - 1
    key = tl.where(inside, key.to(tl.int32), -low - 1)
    last = tl.sum(tl.zeros_like(key), 0) - low - 1  # a scalar
    bit = last
    for _ in range(WIDTH):
        higher = last ^ bit
        last = tl.where(tl.sum((key >= higher).to(tl.int32), 0) >= want, higher, last)
        bit = (bit >> 1) & low  # without the sign that >> copies
    above, equal = key > last, inside & (key == last)
    early = tl.cumsum(equal.to(tl.int32), 0) <= want - tl.sum(above.to(tl.int32), 0)
    return above | (equal & early)


@triton.jit
def maxima(bits, top, n, groups, BY_SIZE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr):
    """The highest key of each group of neighbours."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    col = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    key = ranked(tl.load(bits + row * n + col, mask=col < n, other=0), BY_SIZE, WIDTH)
    low: tl.constexpr = (1 << (WIDTH - 1)) - 1
    high = tl.max(tl.where(col < n, key.to(tl.int32), -low - 1), 1)
    tl.store(top + row * groups + group, high.to(top.dtype.element_ty), mask=group < groups)


@triton.jit
def choose(top, found, groups, k, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The numbers of the k groups that are worth a look, in order."""
    row, group = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = group < groups
    keep = _best(tl.load(top + row * groups + group, mask=inside, other=0), inside, k, WIDTH)
    place = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(found + row * k + place, group, mask=keep)


@triton.jit
def pick(
    bits, found, index, value, n, k, many,
    BY_SIZE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """The k best of `many` groups, all or those in `found`, and where they stand."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    group = at // GROUP
    if not ALL:
        group = tl.load(found + row * many + group, mask=group < many, other=0)
    col = group * GROUP + at % GROUP
    inside = (at // GROUP < many) & (col < n)
    here = tl.load(bits + row * n + col, mask=inside, other=0)
    keep = _best(ranked(here, BY_SIZE, WIDTH), inside, k, WIDTH)
    place = row * k + tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(index + place, col.to(tl.int64), mask=keep)
    tl.store(value + place, here, mask=keep)
