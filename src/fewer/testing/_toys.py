"""The map that checks of weights are made on: its inputs are loud in a few channels."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core.budget import budget
from fewer.select import select
from fewer.testing.heard import heard
from fewer.weights import Pruned


def toy(m, seed=0, dtype=torch.float32, mean=0.0):
    """Weights, inputs and what `m` needs of them; loud channels differ in size, quiet ones are correlated."""
    make = torch.Generator().manual_seed(seed)
    w = torch.randn(16, 32, generator=make).to(dtype)
    mix = torch.eye(32) + 0.2 * torch.randn(32, 32, generator=make)
    x = (torch.randn(256, 32, generator=make) @ mix + mean * torch.randn(32, generator=make)).to(dtype)
    x = x * torch.randn(32, generator=make).exp().to(dtype)
    return w, x, heard(m, w, x)


def tensors_of(stats: Stats) -> list[Tensor]:
    values = (getattr(stat, f.name) for stat in stats.values() for f in dataclasses.fields(stat))
    return [v for v in values if isinstance(v, Tensor)]


def refuses(text: str, do: Callable[[], object]) -> None:
    """A ValueError that repeats what was asked for."""
    try:
        do()
    except ValueError as error:
        assert text in str(error), f"the error does not name '{text}': {error}"
        return
    raise AssertionError(f"'{text}' cannot be met here and is not refused")


def pruned_toy(m, text="50%", seed=0, dtype=torch.float32):
    """A map that magnitude has pruned; its inputs have means, so that lost weights are missed."""
    w, x, stats = toy(m, seed, dtype, mean=2.0)
    keep = select(w.abs(), budget(text))
    return w, x, stats, Pruned(w * keep, keep, budget(text))
