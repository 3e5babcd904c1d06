"""A number of latents for each input, and all inputs together within the budget."""

from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor


def setting(counts: Callable[[float], Int[Tensor, " rows"]], most: int, low: float, high: float) -> float:
    """The setting in [low, high] at which the counts add up to as much as they can, and at most `most`.

    Counts must rise with the setting. Of all settings that give the same sum, the middle one, so that rounding changes
    nothing; `low` if they are too many everywhere.

    >>> import torch
    >>> round(setting(lambda t: torch.tensor([int(10 * t), int(20 * t)]), 9, 0.0, 1.0), 6)  # 3 + 6 from .3 to .35
    0.325
    """
    if counts(high).sum() <= most:
        return high
    last = _edge(lambda t: bool(counts(t).sum() <= most), low, high)
    best = counts(last).sum()
    return (_edge(lambda t: bool(counts(t).sum() < best), low, last) + last) / 2


def _edge(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The last setting at which it still holds, to the last bit, if it holds at `low` and not at `high`."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
