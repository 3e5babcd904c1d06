"""KIVI: keys as small integers by channel, values by token."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewer.cache import Form, Pages, Stored
from fewer.core import Paper, method


@method(Paper("2402.02750", "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", 2024))
class Kivi(Form):
    """Store keys in `bits` bits, a grid for each channel and `group` tokens; values too, a grid for each token and `group` channels.

    x is stored as c = round((x - low) / step), step = (high - low) / (2^bits - 1), and read as low + c step: no number is further off
    than half a step. `low` and `step` are float16, rounded outwards so that the grid holds all of its group.

    Differs from the paper: the newest tokens that stay as they are number `recent` at least, a page more at most. A page or a head that
    groups do not divide is one group. What is forgotten later lets pages be written anew, from what was read.

    >>> x = torch.tensor([[[0.0, 4.0], [1.0, 7.0], [3.0, 4.0]]])      # channels reach from 0 to 3, from 4 to 7
    >>> key, low, step, *_ = Kivi(bits=2).write(x, x)
    >>> key.tolist(), low.tolist(), step.tolist()      # 0 + 0 * 4, 1 + 3 * 4, 3 + 0 * 4
    ([[[0], [13], [3]]], [[[[0.0, 4.0]]]], [[[[1.0, 1.0]]]])
    """

    bits: int = 2
    group: int = 32
    sinks: int = 0
    recent: int = 128
    device: str = ""
    least = 32

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ValueError(f"{self.name}: {self.bits} bits do not divide a byte; write bits=2, 4 or 8")

    def write(self, k: Pages, v: Pages, learnt: tuple[Tensor, ...] = ()) -> Stored:
        slots, channels = self._grouped(k, 1), self._grouped(v, 2)
        key, value = self._codes(slots, 2), self._codes(channels, 3)
        return *_joined(key, self.bits, k.shape), *_joined(value, self.bits, v.shape)

    def read(self, stored: Stored, dims: tuple[int, int], learnt: tuple[Tensor, ...] = ()) -> tuple[Pages, Pages]:
        read = []
        for (codes, low, step), dim, along in zip((stored[:3], stored[3:]), dims, (1, 2), strict=True):
            whole = self._grouped(_apart(codes, self.bits, dim), along)
            read.append((low.float() + whole * step.float()).flatten(along, along + 1))
        return read[0], read[1]

    def _grouped(self, x: Tensor, along: int) -> Tensor:
        size = self.group if self.group and x.shape[along] % self.group == 0 else x.shape[along]
        return x.unflatten(along, (-1, size))

    def _codes(self, x: Tensor, along: int) -> tuple[Tensor, Tensor, Tensor]:
        x, most = x.float(), 2**self.bits - 1
        low = _half(x.amin(along, keepdim=True), -1)
        step = _half((x.amax(along, keepdim=True) - low.float()) / most, 1)
        codes = (x - low.float()) / torch.where(step == 0, 1, step).float()
        return codes.round().clamp(0, most).to(torch.uint8), low, step


def _half(x: Float[Tensor, "*shape"], side: int) -> Float[Tensor, "*shape"]:
    """In float16, never greater (-1) or never smaller (1)."""
    near = x.half()
    wrong = near.float() > x if side < 0 else near.float() < x
    return torch.where(wrong, (near.float() + side * (near.float().abs() * 2**-10 + 2**-24)).half(), near)


def _joined(parts: tuple[Tensor, Tensor, Tensor], bits: int, shape: torch.Size) -> Stored:
    """Codes side by side in bytes, the first of a token in the lowest bits."""
    codes, each = parts[0].reshape(shape), 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -shape[-1] % each)).unflatten(-1, (-1, each))
    place = bits * torch.arange(each, device=codes.device, dtype=torch.uint8)
    return (codes << place).sum(-1, dtype=torch.uint8), *parts[1:]


def _apart(codes: UInt8[Tensor, "pages slots bytes"], bits: int, dim: int) -> Float[Tensor, "pages slots {dim}"]:
    place = bits * torch.arange(8 // bits, device=codes.device, dtype=torch.uint8)
    return (codes[..., None] >> place & (2**bits - 1)).flatten(2)[..., :dim].float()
