"""Gaps: half a byte says how far it is to the next survivor."""

import torch
from jaxtyping import Bool, Int64, Integer, Shaped, UInt8
from torch import Tensor

from ._base import Layout, layout
from ._bits import same_shape, starts

FAR, TOGETHER = 16, 8  # columns that four bits skip; survivors that a row comes in multiples of


@layout
class Gaps(Layout):
    """Right for GPUs and unstructured survivors: 20 bits each, and eight together are one wide load.

    Each entry of a row skips some columns, 0 to 15, and holds the value of the next one; where more must be skipped, an
    entry skips 15 and holds a zero. Zeros also fill a row up to a multiple of eight entries. `gap` has the skips, two a
    byte, the first in the low half; row i has the entries 8 · start[i] up to 8 · start[i + 1].

    As in `Dense` there is no mask: zeros that were kept are dropped. (MACKO, 2511.13061, has the same gaps; its rows are
    not padded to what one lane reads.)

    Bytes: entries · itemsize + entries / 2 + 4 · (rows + 1); 8 for 4 from 2^31 eights on.

    >>> import torch
    >>> w = torch.zeros(1, 40)
    >>> w[0, [0, 1, 4, 35]] = torch.tensor([5.0, 6.0, 7.0, 8.0])
    >>> g = Gaps.pack(w, w != 0)
    >>> g.value.tolist()      # from 4 to 35 it is 30 columns: 15, a zero, then 14 and the 8
    [5.0, 6.0, 7.0, 0.0, 8.0, 0.0, 0.0, 0.0]
    >>> g.gap.tolist(), g.start.tolist(), g.bytes      # 0 | 0 << 4, 2 | 15 << 4, 14, 0; 8 · 4 + 4 + 4 · 2
    ([0, 242, 14, 0], [0, 1], 44)
    """

    value: Shaped[Tensor, " entries"]
    gap: UInt8[Tensor, " bytes"]
    start: Integer[Tensor, " rows1"]
    shape: tuple[int, int]

    @classmethod
    def pack(cls, x: Shaped[Tensor, "rows cols"], keep: Bool[Tensor, "rows cols"]) -> "Gaps":
        same_shape(x, keep)
        (rows, cols), device = x.shape, x.device
        row, column = (keep & (x != 0)).nonzero().unbind(1)
        skip = column.diff(prepend=column.new_full((1,), -1)) - 1
        first = row.diff(prepend=row.new_full((1,), -1)) != 0
        skip = torch.where(first, column, skip)
        entries = skip // FAR + 1  # of each survivor, the zeros before it too
        each = torch.zeros(rows, dtype=torch.int64, device=device).index_add_(0, row, entries)
        start = starts(-(-each // TOGETHER))
        within = (
            entries.cumsum(0) - (each.cumsum(0) - each)[row]
        )  # the rank of a survivor among its row's entries, from 1
        at = start[row].long() * TOGETHER + within - 1
        value = x.new_zeros(int(start[-1]) * TOGETHER)
        value[at] = x[row, column]
        # a zero that skips is any entry before a survivor of several: all of those skip 15
        gap = torch.zeros(len(value) + 1, dtype=torch.int32, device=device)
        gap.index_add_(0, at - entries + 1, torch.full_like(at, FAR - 1, dtype=torch.int32))
        gap.index_add_(0, at, torch.full_like(at, 1 - FAR, dtype=torch.int32))
        gap = gap.cumsum(0)[: len(value)].to(torch.uint8)
        gap[at] = (skip % FAR).to(torch.uint8)
        return cls(value, gap[0::2] | gap[1::2] << 4, start, (rows, cols))

    def dense(self) -> Shaped[Tensor, "rows cols"]:
        out = self.value.new_zeros(self.shape)
        at, here = self._where()
        out.view(-1)[at] = self.value[here]
        return out

    def keep(self) -> Bool[Tensor, "rows cols"]:
        out = self.value.new_zeros(self.shape, dtype=torch.bool)
        out.view(-1)[self._where()[0]] = True
        return out

    def _where(self) -> tuple[Int64[Tensor, " kept"], Bool[Tensor, " entries"]]:
        """The flat position of every survivor, and which entries are survivors."""
        forward = torch.stack([self.gap & 15, self.gap >> 4], 1).flatten().long() + 1
        upto, begin = forward.cumsum(0), self.start.long() * TOGETHER
        row = torch.arange(self.shape[0], device=begin.device).repeat_interleave(begin.diff())
        before = torch.nn.functional.pad(upto, (1, 0))[begin[:-1]][row]
        real = self.value != 0
        return (row * self.shape[1] + upto - before - 1)[real], real
