"""Chance that depends on the place alone: the same for a row whether it is asked alone or among others."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MIX = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)  # odd, of about 32 bits (xxHash's primes)
_LOW = 0x7FFFFFFF


def drawn(seed: int, now: Int[Tensor, " rows"], blocks: int, heads: int) -> Float[Tensor, "1 heads rows blocks"]:
    """Uniform in [0, 1), by a hash of (seed, head, row, block)."""
    head = torch.arange(heads, device=now.device)[:, None, None]
    x = _stir(head * _MIX[0] + seed * _MIX[1])
    x = _stir(x ^ (now[:, None] * _MIX[2]))
    x = _stir(x ^ (torch.arange(blocks, device=now.device) * _MIX[3]))
    return ((x & 0xFFFFFF).double() / 2**24).float()[None]


def _stir(x: Tensor) -> Tensor:
    """Bits of int64 mixed twice by a product and a shift; products stay below 2^63."""
    for _ in range(2):
        x = (x & _LOW) * _MIX[2]
        x = x ^ (x >> 29)
    return x & _LOW
