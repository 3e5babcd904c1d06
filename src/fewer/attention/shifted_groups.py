"""LongLoRA's shifted groups: a group of neighbours, which other heads cut elsewhere."""

import torch
from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method


@method(Paper("2309.12307", "LongLoRA: Efficient Fine-tuning of Long-Context Large Language Models", 2023, ledger=329))
class ShiftedGroups(ByPlace):
    """Read its own group of `group` blocks, from near to far; heads cut the text into groups at `shifts` different places.

    Head h of H is shifted by s = floor(h · shifts / H) · group / shifts blocks: i and j are of a group if
    floor((i + s) / group) = floor((j + s) / group). Two shifts are LongLoRA's (half the heads by half a group); as many as
    heads are the flowing shifts of SCCA (2312.07305).

    Differs from the papers: in blocks; SCCA lets a chunk read another one's keys, here a chunk is cut elsewhere.

    >>> ShiftedGroups(group=2).score_places(torch.tensor([2]), 3, 2)  # groups 01 2 and 0 12
    tensor([[[[-inf, -inf, -0.]],
    <BLANKLINE>
             [[-inf, -1., -0.]]]])
    """

    group: int = 8
    shifts: int = 2
    rows: int = 64
    block: int = 64

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        step = torch.arange(heads, device=now.device) * self.shifts // heads
        shift = (step * self.group // self.shifts)[:, None, None]
        j = torch.arange(blocks, device=now.device)
        same = (now[:, None] + shift) // self.group == (j + shift) // self.group
        return torch.where(same, -apart(now, blocks).float(), -torch.inf)[None]
