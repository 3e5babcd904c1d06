"""The values that quantised weights may take, and small integers side by side in bytes."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int8, Shaped, UInt8
from torch import Tensor

from ._base import Layout

MOST = 8  # bits of a code; one code fits an int8

Table = Float[Tensor, "rows groups"] | Layout  # or a layout of its transpose: a table that is itself quantised


@dataclass(frozen=True)
class Grid:
    """Weights lie at `scale * (code - zero)`, a code being one of 2^bits integers, from -2^(bits - 1) on.

    `scale` and `zero` hold one number for each row and each group of neighbouring columns, as many groups as they have
    columns; no `zero` means 0. Weights at `apart` lie anywhere: they are stored as they are, in bfloat16.

    >>> import torch
    >>> w = torch.tensor([[0.5, -1.5, 0.7, 0.1]])
    >>> grid = Grid.around(w, w != 0, bits=3)
    >>> grid.scale, grid.round(w)
    (tensor([[0.5000]], dtype=torch.bfloat16), tensor([[ 1, -3,  1,  0]], dtype=torch.int8))
    >>> grid.values(grid.round(w))
    tensor([[ 0.5000, -1.5000,  0.5000,  0.0000]])
    """

    bits: int
    scale: Table
    zero: Table | None = None
    apart: Bool[Tensor, "rows cols"] | None = None

    @classmethod
    def around(
        cls,
        w: Float[Tensor, "rows cols"],
        keep: Bool[Tensor, "rows cols"],
        bits: int,
        group: int = 0,
        zero: bool = False,
    ) -> "Grid":
        """The finest grid that reaches all that is kept of each group of `group` columns (0: of the row).

        Without a zero point it is symmetric; with one it spans the least and the greatest weight, and 0, which is
        always a point of it. `scale` is rounded up to bfloat16: then a scale times an int8 code is exact in float32.
        """
        check_bits(bits)
        groups = into_groups(w.float() * keep, group)
        if not zero:
            scale = _up(groups.abs().amax(-1) / max(2 ** (bits - 1) - 1, 1))
            return cls(bits, torch.where(scale > 0, scale, 1))
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = _up((high - low) / (2**bits - 1))
        scale = torch.where(scale > 0, scale, 1)
        return cls(bits, scale, ((-low / scale.float()).round() - 2 ** (bits - 1)).to(torch.bfloat16))

    def tables(self) -> tuple[Float[Tensor, "rows groups"], Float[Tensor, "rows groups"]]:
        """Scales and zero points as numbers, in float32."""
        scale = table(self.scale)
        return scale, torch.zeros_like(scale) if self.zero is None else table(self.zero)

    def round(self, w: Float[Tensor, "rows cols"]) -> Int8[Tensor, "rows cols"]:
        """The nearest code of each weight; a scale of 0 has one point only."""
        scale, zero = table(self.scale), None if self.zero is None else table(self.zero)
        at = into_groups(w.float(), columns=scale.shape[1]) / torch.where(scale == 0, torch.inf, scale)[..., None]
        at = at if zero is None else at + zero[..., None]
        half = 2 ** (self.bits - 1)
        return at.round().clamp(-half, half - 1).flatten(1).to(torch.int8)

    def values(self, codes: Int8[Tensor, "rows cols"]) -> Float[Tensor, "rows cols"]:
        """What the codes stand for, in float32."""
        scale = table(self.scale)
        at = into_groups(codes.float(), columns=scale.shape[1])
        at = at if self.zero is None else at - table(self.zero)[..., None]
        return (at * scale[..., None]).flatten(1)


def table(x: Table) -> Float[Tensor, "rows groups"]:
    """The numbers themselves, in float32."""
    return x.dense().mT.float() if isinstance(x, Layout) else x.float()


def into_groups(
    x: Shaped[Tensor, "rows cols"], group: int = 0, columns: int | None = None
) -> Shaped[Tensor, "rows groups group"]:
    """A view by groups of `group` columns (0: all), or by so many groups; `ValueError` unless they divide."""
    cols = x.shape[1]
    group = cols // columns if columns else group or cols
    if group < 1 or cols % group:
        divide = ", ".join(str(g) for g in (256, 128, 64, 32, 16, 8) if cols % g == 0) or "0, the whole row"
        raise ValueError(f"groups of {group} do not divide {cols} columns; give a group that does: {divide}")
    return x.unflatten(1, (cols // group, group))


def check_bits(bits: int) -> None:
    if not 1 < bits <= MOST:
        raise ValueError(f"codes of {bits} bits cannot be stored; give 2 to {MOST}")


def _up(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """In bfloat16, never smaller."""
    near = x.to(torch.bfloat16)
    return torch.where(near.float() < x, torch.nextafter(near, near.new_tensor(torch.inf)), near)


def pack_codes(codes: Int8[Tensor, " n"], bits: int) -> UInt8[Tensor, " bytes"]:
    """Each code plus 2^(bits - 1), in `bits` bits, from the lowest bit of the first byte on.

    >>> import torch
    >>> pack_codes(torch.tensor([-8, 7, 0], dtype=torch.int8), 4)      # 0, 15, 8
    tensor([240,   8], dtype=torch.uint8)
    """
    n = len(codes)
    raised = torch.nn.functional.pad(codes.long() + 2 ** (bits - 1), (0, -n % 8)).view(-1, 8)
    word = sum((raised[:, i] << bits * i for i in range(8)), start=torch.zeros_like(raised[:, 0]))
    packed = torch.stack([word >> 8 * k & 255 for k in range(bits)], 1).to(torch.uint8)
    return packed.flatten()[: -(-n * bits // 8)]


def unpack_codes(packed: UInt8[Tensor, " bytes"], n: int, bits: int) -> Int8[Tensor, " {n}"]:
    """The inverse of `pack_codes`: eight codes lie in `bits` bytes."""
    parts = torch.nn.functional.pad(packed, (0, -len(packed) % bits)).view(-1, bits).long()
    word = sum((parts[:, k] << 8 * k for k in range(bits)), start=torch.zeros_like(parts[:, 0]))
    raised = torch.stack([word >> bits * i & (1 << bits) - 1 for i in range(8)], 1)
    return (raised.flatten()[:n] - 2 ** (bits - 1)).to(torch.int8)
