"""What the methods of a toy map are told: statistics of its inputs, and gradients of a loss that it might have."""

import torch
from torch import Tensor

from fewer.calibrate import Stats, observe
from fewer.core import Method


def heard(m: Method, w: Tensor, x: Tensor, windows: int = 8) -> Stats:
    """What `m` needs to know of `w` and `x`, gradients of a squared error in each of `windows` parts of `x` included.

    What a gradient tells depends on how far learning has come. Gradients are those of a map that is on its way: its
    teacher is about half as large again, and its answers are noisy. H g is that of a map before training, whose teacher
    has nothing to do with it: there a rule that keeps what learning runs through has something to keep.
    """
    make = torch.Generator().manual_seed(len(w))
    parts, wide = torch.stack(x.float().chunk(windows)), w.float()
    on_its_way = 1.5 * wide + 0.3 * torch.randn(w.shape, generator=make)
    noise = torch.randn(*parts.shape[:2], len(w), generator=make) * (parts @ wide.mT).std()
    error = parts @ (wide - on_its_way).mT - noise
    before = (wide - torch.randn(w.shape, generator=make)) @ x.float().mT @ x.float() / len(x)
    curve = before @ (parts.mT @ parts) / parts.shape[1]
    return observe(m.needs, w, x, error.mT @ parts / parts.shape[1], curve)
