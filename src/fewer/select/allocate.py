"""One budget divided over layers: exact integer counts in proportion to weights, and weights from shapes."""

import math
from collections.abc import Sequence
from fractions import Fraction

from fewer.core import Budget


def divide(budget: Budget, sizes: Sequence[int], weights: Sequence[float | int]) -> list[int]:
    """How many of each layer's units stay, if the shares that stay are to be as `weights` and the total exact.

    Layer i gets clip(c * weights[i] * sizes[i], 1, sizes[i]), with the one c for which these sum to the budget of all
    units together (water-filling: what a full layer cannot take, the others do), rounded by largest remainder, ties
    to the earlier layer. The floor of one is dropped if there are more layers than units to keep.

    ValueError: N:M and counts per row (nothing to divide), a weight that is not above zero, lengths that differ.

    >>> from fewer.core.budget import budget
    >>> divide(budget("50% per model"), [10, 10, 20], [1, 1, 1])
    [5, 5, 10]
    >>> divide(budget("50% per model"), [10, 10, 20], [8, 1, 1])  # the first is full, the others share 10 as 10 : 20
    [10, 3, 7]
    """
    if budget.group or (isinstance(budget.keep, int) and not (budget.joint or budget.scope == "tensor")):
        raise ValueError(f"budget '{budget}' has no total to divide; write a share, '50%', or a count 'per model'")
    if len(sizes) != len(weights):
        raise ValueError(f"{len(sizes)} sizes and {len(weights)} weights: each layer has one of both")
    if bad := [w for w in weights if not 0 < w < math.inf]:
        raise ValueError(f"a weight is a finite number above zero, not {bad[0]}")
    if bad_sizes := [size for size in sizes if size < 1]:
        raise ValueError(f"a layer has at least one unit, not {bad_sizes[0]}")
    if not sizes:
        return []
    total = budget.of(sum(sizes))
    least = 1 if total >= len(sizes) else 0
    quotas = _fill(total, least, sizes, [Fraction(w) * size for w, size in zip(weights, sizes, strict=True)])
    counts = [math.floor(q) for q in quotas]
    by_remainder = sorted(range(len(sizes)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _fill(total: int, least: int, sizes: Sequence[int], slopes: list[Fraction]) -> list[Fraction]:
    """The quotas clip(c * slope, least, size) that sum to `total`, exactly: the sum is linear between its bends."""

    def quotas(c: Fraction) -> list[Fraction]:
        return [min(max(c * slope, Fraction(least)), Fraction(size)) for slope, size in zip(slopes, sizes, strict=True)]

    bends = sorted({Fraction(end) / slope for slope, size in zip(slopes, sizes, strict=True) for end in (least, size)})
    low, high = 0, len(bends) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sum(quotas(bends[middle])) <= total else (low, middle)
    below, above = sum(quotas(bends[low])), sum(quotas(bends[high]))
    if above == below:
        return quotas(bends[low])
    return quotas(bends[low] + (bends[high] - bends[low]) * (total - below) / (above - below))


def uniform_weights(shapes: Sequence[Sequence[int]]) -> list[float]:
    """The same share of every layer.

    >>> uniform_weights([(4, 4), (8, 2)])
    [1.0, 1.0]
    """
    return [1.0 for _ in shapes]


def er_weights(shapes: Sequence[Sequence[int]]) -> list[float]:
    """Erdos-Renyi: a layer's share is as (out + in) / (out * in), so that small layers keep more.

    Mocanu et al. 2018 (1707.04780), eq. 1, as shares; kernel sizes do not count.

    >>> er_weights([(4, 4), (2, 4, 3, 3)])
    [0.5, 0.75]
    """
    return [sum(shape[:2]) / math.prod(shape[:2]) for shape in shapes]


def erk_weights(shapes: Sequence[Sequence[int]]) -> list[float]:
    """Erdos-Renyi-Kernel: a layer's share is as the sum of all its dimensions over their product.

    Evci et al. 2020 (1911.11134), section 3; for linear maps the same as `er_weights`.

    >>> erk_weights([(4, 4), (2, 4, 3, 3)])
    [0.5, 0.16666666666666666]
    """
    return [sum(shape) / math.prod(shape) for shape in shapes]
