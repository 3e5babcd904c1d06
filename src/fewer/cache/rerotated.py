"""Rerotated: what stays moves together."""

from dataclasses import replace

import torch

from fewer.cache import Corrector, Keep, Past
from fewer.core import Paper, method


@method(
    Paper("10.1162/tacl_a_00716", "FINCH: Prompt-guided Key-Value Cache Compression for Large Language Models", 2024)
)
class Rerotated(Corrector):
    """Turn the keys that stay to places without gaps, the newest where it is.

    A key at place p that is the i-th of n goes to place newest - (n - 1 - i): `at` says so, and the key is turned by the
    difference. For queries to come this is a text in which the forgotten tokens never stood.

    Differs from the paper: there the first key moves to place 0 and the queries' places move too; the distances are the same.
    Without rotary positions nothing happens.

    Of places 0, 1, 2 the second goes: the first moves to 1, a quarter turn.

    >>> from dataclasses import replace
    >>> from fewer.cache import Rope
    >>> past = replace(Past.of(torch.tensor([[[[1.0, 0.0]] * 3]])), rope=Rope(torch.tensor([torch.pi / 2])))
    >>> after = Rerotated().correct(past, torch.tensor([[[True, False, True]]]))
    >>> after.k[0, 0].round(decimals=3) + 0.0, after.at
    (tensor([[0., 1.],
            [1., 0.],
            [1., 0.]]), tensor([[[1, 1, 2]]], dtype=torch.int32))
    """

    def correct(self, past: Past, keep: Keep) -> Past:
        if past.rope is None:
            return past
        keep = keep & past.real
        n = keep.sum(-1, keepdim=True)
        newest = past.at.masked_fill(~keep, -1).amax(-1, keepdim=True)
        place = torch.where(keep, newest - n + keep.cumsum(-1), past.at).int()
        return replace(past, k=past.rope.turn(past.k.float(), place - past.at).to(past.k.dtype), at=place)
