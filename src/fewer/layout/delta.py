"""A change of few weights: how far to the next one, and what it is."""

import dataclasses

import torch
from jaxtyping import Bool, Int64, Shaped, UInt16
from torch import Tensor

from ._base import Layout, layout
from ._bits import same_shape

FAR = 65535


@layout
class Delta(Layout):
    """Right for what fine-tuning changed: any shape, survivors far apart, two bytes for where.

    `gap` tells, in flat row-major order, how many weights are skipped before each survivor; 65535 says "skip 65535 and
    read on". `value` is either the change (`add_`) or what the weight becomes (`put_`, `between`): both return what
    stood there as another Delta, and to `put_` that back is exact, which subtracting in low precision is not.

    Bytes: kept · (itemsize + 2) + 2 · (escapes: the sum over gaps of gap // 65535).

    >>> import torch
    >>> change = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.25, 0.0]])
    >>> d = Delta.pack(change, change != 0)
    >>> d.gap.tolist(), d.value.tolist(), d.bytes      # 2 · (4 + 2)
    ([1, 2], [0.5, 0.25], 12)
    >>> w = torch.ones(2, 3)
    >>> old = d.add_(w)
    >>> w.tolist(), old.value.tolist()
    ([[1.0, 1.5, 1.0], [1.0, 1.25, 1.0]], [1.0, 1.0])
    >>> _ = old.put_(w)
    >>> w.tolist()
    [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """

    value: Shaped[Tensor, " kept"]
    gap: UInt16[Tensor, " codes"]
    shape: tuple[int, ...]

    @classmethod
    def pack(cls, x: Shaped[Tensor, "*shape"], keep: Bool[Tensor, "*shape"]) -> "Delta":
        same_shape(x, keep)
        return cls.at(keep.flatten().nonzero().flatten(), x.masked_select(keep), tuple(x.shape))

    @classmethod
    def at(cls, index: Int64[Tensor, " kept"], value: Shaped[Tensor, " kept"], shape: tuple[int, ...]) -> "Delta":
        """From flat indices, ascending and distinct; otherwise `ValueError`."""
        skip = index.diff(prepend=index.new_full((1,), -1)) - 1
        if bool((skip < 0).any()):
            raise ValueError("the indices of a Delta ascend and do not repeat; sort them with their values first")
        codes = len(index) + int((skip // FAR).sum())
        gap = torch.full((codes,), -1, dtype=torch.int16, device=index.device)  # -1 is read as 65535
        gap[torch.arange(len(index), device=index.device) + (skip // FAR).cumsum(0)] = (skip % FAR).to(torch.int16)
        return cls(value, gap.view(torch.uint16), shape)

    @classmethod
    def between(cls, base: Shaped[Tensor, "*shape"], tuned: Shaped[Tensor, "*shape"]) -> "Delta":
        """What to `put_` into `base` to have `tuned`, bit for bit."""
        same_shape(base, tuned)
        if base.dtype is not tuned.dtype:
            raise ValueError(f"base is {base.dtype} and tuned is {tuned.dtype}; bring both to one dtype first")
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[base.element_size()]
        return cls.pack(tuned, base.contiguous().view(bits) != tuned.contiguous().view(bits))

    def index(self) -> Int64[Tensor, " kept"]:
        """The flat index of each survivor, ascending."""
        gap = self.gap.long()
        return ((gap + (gap < FAR)).cumsum(0) - 1)[gap < FAR]

    def dense(self) -> Shaped[Tensor, "*shape"]:
        out = self.value.new_zeros(self.shape)
        out.view(-1)[self.index()] = self.value
        return out

    def keep(self) -> Bool[Tensor, "*shape"]:
        out = self.value.new_zeros(self.shape, dtype=torch.bool)
        out.view(-1)[self.index()] = True
        return out

    def add_(self, weight: Shaped[Tensor, "*shape"]) -> "Delta":
        """Add to `weight` in place, in the wider dtype, rounded once. Returns what stood there, to `put_` back."""
        return self._write(weight, add=True)

    def put_(self, weight: Shaped[Tensor, "*shape"]) -> "Delta":
        """Overwrite in `weight` in place. Returns what stood there, to `put_` back."""
        return self._write(weight, add=False)

    @torch.no_grad()
    def _write(self, weight: Tensor, add: bool) -> "Delta":
        if tuple(weight.shape) != self.shape or not weight.is_contiguous():
            raise ValueError(
                f"a Delta of {self.shape} fits a contiguous weight of that shape, not {tuple(weight.shape)}"
            )
        at, flat = self.index(), weight.view(-1)
        old, new = flat[at], self.value
        if add:
            wide = torch.promote_types(old.dtype, new.dtype)
            new = old.to(wide) + new.to(wide)
        flat[at] = new.to(weight.dtype)
        return dataclasses.replace(self, value=old)
