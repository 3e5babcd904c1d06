"""Maps stored column by column for a while: what a token does not multiply is then one piece of memory that is not read."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from fewer.core import Site

STORED = (torch.float32, torch.bfloat16, torch.float16)


def fits(site: Site) -> bool:
    """Whether a site's module is one plain map, whose product kernels for columns can make."""
    return type(site.module) in (nn.Linear, Conv1D) and site.part is None and site.tensor.dtype in STORED


@contextlib.contextmanager
def by_columns(sites: Sequence[Site]) -> Iterator[None]:
    """While this is open, the maps lie in memory column by column: the same parameters, values and shapes, other strides.

    One map is copied at a time, and nothing is kept twice; afterwards each lies as it did.
    """
    moved: list[Site] = []
    try:
        for site in sites:
            if fits(site) and not site.read().mT.is_contiguous():
                site.tensor.data = site.tensor.data.mT.contiguous().mT
                moved.append(site)
        yield
    finally:
        for site in moved:
            site.tensor.data = site.tensor.data.contiguous()
