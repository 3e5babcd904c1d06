"""Run a pruned model on its packed weights, for a while."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from fewer.layout import Layout
from fewer.models import sites

from .act import Applied
from .formats import quickest
from .pack import packed
from .save import swapped


@contextlib.contextmanager
def fast(applied: Applied, tokens: int = 1) -> Iterator[nn.Module]:
    """The model with its pruned maps as `SparseLinear`s, each in the layout that the measured costs find fastest.

    `model.generate` runs on them; on leaving, the very modules that were there are back. `tokens` is how many
    go through a map at once in what matters: the batch while generating.

    >>> with apply(model, "weights/magnitude 50% of 16x1") as applied, fast(applied) as quick:  # doctest: +SKIP
    ...     quick.generate(ids)
    """
    if applied.model is None:
        raise ValueError(f"this result is on disk, at {applied.out}: fewer.load it, which runs on packed weights")

    def choose(layout: Layout) -> Layout:
        return quickest(layout, tokens, _inputs(applied.model))

    touched = [s for step in applied.steps for s in sites(applied.model, step.where)]
    with swapped(applied.model, packed(applied.model, touched, applied.stored, choose)):
        yield applied.model


def _inputs(model: nn.Module | None) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32) if model is not None else torch.float32
