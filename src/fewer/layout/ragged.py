"""Rows of different lengths, end to end: what is left of a cache whose heads keep different tokens."""

import math

import torch
from jaxtyping import Bool, Int32, Int64, Integer, Shaped
from torch import Tensor

from ._base import Layout, layout
from ._bits import flat, starts


@layout
class Ragged(Layout):
    """Right if each (batch, head) keeps its own number of vectors: the varlen form that attention kernels read.

    Row r of the flattened leading dimensions is `start[r]:start[r + 1]` of `value`; `place` is where in the row each
    vector stood, for rotary positions and for padding back. `shape` is (*rows, n, d); `keep` has no last dimension.

    Bytes: kept · (d · itemsize + 4) + 4 · (rows + 1); 8 for the last 4 from 2^31 vectors on.

    >>> import torch
    >>> x = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])      # 2 heads, 3 tokens, d = 1
    >>> r = Ragged.pack(x, torch.tensor([[True, False, True], [False, True, False]]))
    >>> r.value.flatten().tolist(), r.place.tolist(), r.start.tolist()
    ([1.0, 3.0, 5.0], [0, 2, 1], [0, 2, 3])
    >>> r.bytes      # 3 · (1 · 4 + 4) + 4 · 3
    36
    """

    value: Shaped[Tensor, "kept d"]
    place: Int32[Tensor, " kept"]
    start: Integer[Tensor, " rows1"]
    shape: tuple[int, ...]

    @classmethod
    def pack(cls, x: Shaped[Tensor, "*rows n d"], keep: Bool[Tensor, "*rows n"]) -> "Ragged":
        if x.shape[:-1] != keep.shape:
            raise ValueError(f"x is {tuple(x.shape)} and keep is {tuple(keep.shape)}; give one flag for each vector")
        flags = keep.reshape(math.prod(keep.shape[:-1]), keep.shape[-1])
        place = torch.arange(keep.shape[-1], device=x.device, dtype=torch.int32).expand_as(flags).masked_select(flags)
        return cls(x[keep], place, starts(flags.sum(1)), tuple(x.shape))

    def lengths(self) -> Integer[Tensor, "*rows"]:
        """How many vectors each row keeps."""
        return self.start.diff().view(self.shape[:-2])

    def dense(self) -> Shaped[Tensor, "*rows n d"]:
        """Padded back with zeros, each vector where it stood."""
        out = self.value.new_zeros(self.shape)
        out.view(-1, self.shape[-1])[self._where()] = self.value
        return out

    def keep(self) -> Bool[Tensor, "*rows n"]:
        out = self.value.new_zeros(self.shape[:-1], dtype=torch.bool)
        out.view(-1)[self._where()] = True
        return out

    def _where(self) -> Int64[Tensor, " kept"]:
        return flat(self.start, self.place, self.shape[-2])
