"""Mustafar: of each key and each value only the largest numbers."""

import torch
from torch import Tensor

from fewer.cache import Form, Pages, Stored
from fewer.core import Paper, budget, method
from fewer.kernels import top_k
from fewer.layout._bits import pack_bits, unpack_bits

TITLE = "Mustafar: Promoting Unstructured Sparsity for KV Cache Pruning in LLM Inference"


@method(Paper("2505.22913", TITLE, 2025, ledger=427))
class Mustafar(Form):
    """Store the `keep` largest magnitudes of each key and each value, and a bit for each number that says whether it is one of them.

    A vector of d numbers takes keep d of them and d / 8 bytes. Attention over it is that over the pruned vectors.

    Differs from the paper: a kernel there multiplies by compressed tiles; here pages are unpacked as they are read. Values lie row by row,
    so no tile is filled up.

    >>> x = torch.tensor([[[1.0, -5.0, 2.0, 0.0]]])
    >>> value, bits, *_ = Mustafar(keep="50%").write(x, x)
    >>> value.tolist(), bits.tolist()      # channels 1 and 2: 2 + 4
    ([[[-5.0, 2.0]]], [[[6]]])
    """

    keep: str = "30%"  # "70% sparsity"
    sinks: int = 0
    recent: int = 32  # "the most recent 32 tokens"
    device: str = ""

    def __post_init__(self) -> None:
        if not budget(self.keep).plain:
            raise ValueError(f"{self.name}: a vector keeps a share or a number of its entries, not {self.keep!r}")

    def write(self, k: Pages, v: Pages, learnt: tuple[Tensor, ...] = ()) -> Stored:
        return *self._packed(k), *self._packed(v)

    def read(self, stored: Stored, dims: tuple[int, int], learnt: tuple[Tensor, ...] = ()) -> tuple[Pages, Pages]:
        return _unpacked(*stored[:2], dims[0]), _unpacked(*stored[2:], dims[1])

    def _packed(self, x: Pages) -> Stored:
        count = budget(self.keep).of(x.shape[-1])
        keep = top_k(x.abs().float(), torch.full(x.shape[:2], count, device=x.device))
        return x[keep].view(*x.shape[:2], count), pack_bits(keep.flatten(0, 1)).unflatten(0, x.shape[:2])


def _unpacked(value: Tensor, bits: Tensor, dim: int) -> Pages:
    keep = unpack_bits(bits.flatten(0, 1), dim).unflatten(0, bits.shape[:2])
    return value.new_zeros(keep.shape).masked_scatter_(keep, value)
