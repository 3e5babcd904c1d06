"""How other tools store one sparse map in several tensors: told by the endings of their names, no config asked."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewer.core import budget
from fewer.layout import Bitmask, Layout, Nm, smallest
from fewer.select import select

Survivors = tuple[Tensor, Tensor]  # the whole tensor with zeros, and True where something was kept


class Way(ABC):
    """A tool's way to store a map as tensors `<prefix><ending>`, one for each of `endings`."""

    endings: tuple[str, ...]

    @abstractmethod
    def read(self, *tensors: Tensor) -> Survivors:
        """From the stored tensors, in the order of `endings`. `ValueError` if they contradict each other."""

    def layout(self, *tensors: Tensor) -> Layout:
        """The same as one of our layouts."""
        return smallest(*self.read(*tensors))


class Written(Way):
    """A way in which we write too: a format of compressed-tensors, by its name there."""

    name: ClassVar[str]
    structure: ClassVar[str]

    @abstractmethod
    def write(self, w: Tensor) -> dict[str, Tensor] | None:
        """The tensors for `w`, by ending; None if this way cannot hold it."""


class SparseBitmask(Written):
    """sparse-bitmask: our `Bitmask`, its starts in 64 bits and without the end; zeros are never kept."""

    name, structure = "sparse-bitmask", "unstructured"
    endings = (".shape", ".compressed", ".bitmask", ".row_offsets")

    def read(self, *tensors: Tensor) -> Survivors:
        return _spread(*tensors[:3])

    def layout(self, *tensors: Tensor) -> Layout:
        return Bitmask.pack(*self.read(*tensors))

    def write(self, w: Tensor) -> dict[str, Tensor] | None:
        ours = Bitmask.pack(w, w != 0)
        parts = (torch.tensor(w.shape), ours.value, ours.mask, ours.start[:-1].long())
        return dict(zip(self.endings, parts, strict=True))


class Sparse24Bitmask(Written):
    """sparse-24-bitmask: two values of every four neighbours, and one bit a weight that says which two."""

    name, structure = "sparse-24-bitmask", "2:4"
    endings = (".shape", ".compressed", ".bitmask")

    def read(self, *tensors: Tensor) -> Survivors:
        return _spread(*tensors)

    def layout(self, *tensors: Tensor) -> Layout:
        return Nm.pack(*self.read(*tensors), m=4)

    def write(self, w: Tensor) -> dict[str, Tensor] | None:
        if w.shape[1] % 4 or int((w != 0).unflatten(1, (-1, 4)).sum(-1).amax()) > 2:
            return None
        ours = Bitmask.pack(w, select(w.abs().float(), budget("2:4")))
        parts = (torch.tensor(w.shape)[:, None], ours.value.reshape(len(w), -1), ours.mask)
        return dict(zip(self.endings, parts, strict=True))


@dataclass(frozen=True)
class Masked(Way):
    """The whole map and, beside it, a mask of zeros and ones."""

    endings: tuple[str, ...]

    def read(self, *tensors: Tensor) -> Survivors:
        w, mask = tensors
        return w.masked_fill(mask == 0, 0), mask != 0


def _spread(shape: Tensor, value: Tensor, bits: Tensor) -> Survivors:
    """Values to where the bits are set, in a tensor of one or more dimensions; each row of the last begins a byte."""
    size = [int(n) for n in shape.flatten()]
    rows = bits.reshape(-1, bits.shape[-1])
    stored = Bitmask(value.flatten(), rows, rows.new_empty(0), (len(rows), size[-1]))
    if (told := int(stored.keep().sum())) != value.numel():
        raise ValueError(f"a map of {size} has {value.numel()} values for {told} bits that are set: damaged")
    return stored.dense().reshape(size), stored.keep().reshape(size)


WRITTEN = {way.name: way for way in (SparseBitmask(), Sparse24Bitmask())}
PRUNE = Masked((".weight_orig", ".weight_mask"))  # torch.nn.utils.prune
PARAMETRIZED = Masked((".parametrizations.weight.original", ".parametrizations.weight.0.mask"))  # torch.ao.pruning
MODELOPT = Masked((".weight", "._weight_mask"))
CEREBRAS = Masked((".weight", ".weight_mask"))
WAYS: tuple[Way, ...] = (*WRITTEN.values(), PRUNE, PARAMETRIZED, MODELOPT, CEREBRAS)  # more particular ones first


def gather(names: Iterable[str]) -> dict[str, tuple[Way, tuple[str, ...]]]:
    """The maps that other tools stored: what each is called in the model, in which way, and of which tensors.

    >>> gather(["a.shape", "a.compressed", "a.bitmask", "b.weight"])["a.weight"][1]
    ('a.shape', 'a.compressed', 'a.bitmask')
    """
    left, found = set(names), {}
    for way in WAYS:
        for last in [n for n in sorted(left) if n.endswith(way.endings[-1])]:
            prefix = last.removesuffix(way.endings[-1])
            keys = tuple(prefix + ending for ending in way.endings)
            if left.issuperset(keys):
                left.difference_update(keys)
                found[prefix if prefix.endswith((".weight", ".bias")) else f"{prefix}.weight"] = (way, keys)
    return found


def decoded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state in which every map is one plain tensor, from one in which some are stored in other tools' ways."""
    found = gather(tensors)
    taken = {key for _, keys in found.values() for key in keys}
    plain = {name: t for name, t in tensors.items() if name not in taken}
    return plain | {name: way.read(*(tensors[k] for k in keys))[0] for name, (way, keys) in found.items()}
