"""What every layout can do: pack, unpack, know its bytes, and become named tensors and back."""

import dataclasses
import importlib
import pkgutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, dataclass_transform

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

Leaf = TypeVar("Leaf", bound="Layout")


class Layout(ABC):
    """A frozen dataclass of tensors and small numbers that stands for a sparse matrix.

    Leaves are `@layout` classes, one file each: `fewer/layout/bitmask.py` holds `class Bitmask`, named `bitmask`.
    """

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # `@layout` makes every leaf a dataclass

    if TYPE_CHECKING:  # a field of most leaves, computed by the others

        @property
        def shape(self) -> tuple[int, ...]: ...

    @classmethod
    @abstractmethod
    def pack(cls: type[Leaf], x: Shaped[Tensor, "*rows n"], keep: Bool[Tensor, "*rows n"]) -> Leaf:
        """Store `x` where `keep` is True. Raises `ValueError` if `keep` has not the structure that is stored."""

    @abstractmethod
    def dense(self) -> Shaped[Tensor, "*rows n"]:
        """The matrix again, exactly: same dtype, zeros where nothing was kept."""

    @abstractmethod
    def keep(self) -> Bool[Tensor, "*rows n"]:
        """Where something was kept, kept zeros too."""

    def tensors(self) -> dict[str, Tensor]:
        """What must be saved, by field name; of a layout inside this one, by both names: `codes_mask`."""
        out: dict[str, Tensor] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                out[field.name] = value
            elif isinstance(value, Layout):
                out |= {f"{field.name}_{name}": tensor for name, tensor in value.tensors().items()}
        return out

    def numbers(self) -> dict[str, Any]:
        """The rest, ready for JSON; of a layout inside this one, its kind and its numbers."""
        pairs = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {
            name: {"layout": value.name, "numbers": value.numbers()} if isinstance(value, Layout) else value
            for name, value in pairs
            if not isinstance(value, Tensor)
        }

    @classmethod
    def restore(cls: type[Leaf], tensors: dict[str, Tensor], numbers: dict[str, Any]) -> Leaf:
        """The inverse of `tensors` and `numbers`, also after a trip through JSON."""
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in numbers.items()}
        for name, told in numbers.items():
            if isinstance(told, dict):
                inside = {k.removeprefix(f"{name}_"): v for k, v in tensors.items() if k.startswith(f"{name}_")}
                plain[name] = find_layout(told["layout"]).restore(inside, told["numbers"])
                tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{name}_")}
        return cls(**tensors, **plain)

    def __reduce__(self) -> tuple[Any, ...]:
        """Told to another process byte by byte: torch cannot pickle tensors of every dtype (uint16)."""
        raw = {k: (v.cpu().reshape(-1).view(torch.uint8).numpy(), v.dtype, v.shape) for k, v in self.tensors().items()}
        return _told, (type(self), raw, self.numbers())

    def to(self: Leaf, device: torch.device | str) -> Leaf:
        return type(self).restore({k: v.to(device) for k, v in self.tensors().items()}, self.numbers())

    @property
    def count(self) -> int:
        """How many weights are stored."""
        return self.tensors()["value"].numel()

    @property
    def bytes(self) -> int:
        """All of it, indices and metadata included."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


def _told(kind: type[Layout], raw: dict[str, Any], numbers: dict[str, Any]) -> Layout:
    tensors = {k: torch.from_numpy(v).view(dtype).reshape(shape) for k, (v, dtype, shape) in raw.items()}
    return kind.restore(tensors, numbers)


@dataclass_transform(eq_default=False, frozen_default=True)
def layout(cls: type[Leaf]) -> type[Leaf]:
    """Make the class a layout: frozen, named after its file."""
    cls.name = cls.__module__.rpartition(".")[2]
    return dataclasses.dataclass(frozen=True, eq=False)(cls)


def layouts() -> list[str]:
    """The names of all layouts."""
    here = importlib.import_module("fewer.layout").__path__
    return sorted(m.name for m in pkgutil.iter_modules(here) if not m.name.startswith("_"))


def find_layout(name: str) -> type[Layout]:
    """The class of `bitmask`."""
    if name not in layouts():
        raise LookupError(f"no layout {name!r}; there are: {', '.join(layouts())}")
    module = importlib.import_module(f"fewer.layout.{name}")
    return next(
        c
        for c in vars(module).values()
        if isinstance(c, type) and issubclass(c, Layout) and c.__module__ == module.__name__
    )
