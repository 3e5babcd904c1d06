"""The inputs on which residual's backends must agree: those of prefixes, with a bias."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fewer.kernels.prefixes.cases import cases as all_prefixes
from fewer.layout import Codes


def cases(dtype: torch.dtype, device: str) -> Iterator[tuple[Codes, Tensor, Tensor, Tensor]]:
    make = torch.Generator().manual_seed(1)
    for codes, atoms, y, _ in all_prefixes(dtype, device):
        yield codes, atoms, y, torch.randn(y.shape[1], generator=make).to(dtype).to(device)
