"""What attend_pages takes, and choosing pages before it: seconds = launch + byte · bytes, both measured (`bench.attention.fit`)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewer.kernels._costs import profile


@dataclass(frozen=True)
class Decoding:
    """The bytes of keys and values that one token reads, of all heads; `chosen`: how many bytes were looked at to choose them."""

    read: int
    stored: torch.dtype
    cuda: bool
    chosen: int = 0


def seconds(
    backend: str, q: Tensor, k: Tensor, v: Tensor, at: Tensor, table: Tensor, now: Tensor, *more: float
) -> dict[str, float]:
    """Estimates for `cpu` or `gpu`; empty where nothing was measured."""
    return estimate(kind(q, k, v, at, table, now))


def kind(q: Tensor, k: Tensor, v: Tensor, at: Tensor, table: Tensor, now: Tensor, *more: float) -> Decoding:
    """The bytes of all pages that the table has room for."""
    each = at.shape[1] * (k.shape[2] + v.shape[2]) * k.element_size()
    return Decoding(table.numel() * each, k.dtype, k.is_cuda)


def estimate(d: Decoding) -> dict[str, float]:
    """The same from sizes alone."""
    found = profile(d.cuda, "attend_pages")
    if found is None:
        return {}
    costs = found[1]["attend_pages"]
    read = costs["read"].get(str(d.stored).removeprefix("torch.")) or next(iter(costs["read"].values()))
    took = read["launch"] + read["byte"] * d.read
    if d.chosen:
        took += costs["choose"]["launch"] + costs["choose"]["byte"] * d.chosen
    return {"gpu" if d.cuda else "cpu": took}


def examples() -> Iterator[tuple[str, dict[str, float]]]:
    """8 heads of keys of 128 channels: all of a text, and 2048 keys of it chosen by the bounds of pages of 16."""
    cuda = torch.cuda.is_available()
    slot = 8 * 2 * 128 * 2
    for keys in (8192, 32768, 131072):
        yield f"all of {keys} keys, bfloat16", estimate(Decoding(keys * slot, torch.bfloat16, cuda))
        some = Decoding(2048 * slot, torch.bfloat16, cuda, keys // 16 * slot)
        yield f"2048 of {keys} keys, bfloat16, with choosing", estimate(some)
