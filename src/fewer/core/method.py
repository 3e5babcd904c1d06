"""What a method is, and how it is found: the file system is the registry.

`fewer/weights/wanda.py` holds `class Wanda`; its name is `weights/wanda`. Nothing is listed
anywhere else, so two people who add two methods never touch the same line.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import pkgutil
import sys
from abc import ABC
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, TypeVar, dataclass_transform

from .paper import Paper

AXES = (
    "weights",
    "activations",
    "attention",
    "cache",
    "experts",
    "features",
    "finetune",
    "retrieval",
    "tokens",
    "spatial",
    "codes",
)


class Method(ABC):
    """A frozen dataclass of hyper-parameters with one verb; what it must know of the data is in `needs`."""

    name: ClassVar[str]
    paper: ClassVar[Paper]
    needs: ClassVar[tuple[type, ...]] = ()  # the statistics it asks for
    quick: ClassVar[bool] = True  # whether a figure of all methods measures it; who takes minutes is asked for by name


M = TypeVar("M", bound=Method)


@dataclass_transform(frozen_default=True)
def method(paper: Paper) -> Callable[[type[M]], type[M]]:
    """Make the class a method: frozen, comparable, printable, named after its file, tied to its paper."""

    def wrap(cls: type[M]) -> type[M]:
        package, _, file = cls.__module__.rpartition(".")
        if not cls.__doc__:
            raise TypeError(f"{cls.__name__}: say the rule in the docstring's first line")
        cls.name, cls.paper = f"{package.rpartition('.')[2]}/{file}", paper
        return dataclasses.dataclass(frozen=True)(cls)

    return wrap


def axes() -> tuple[str, ...]:
    """The eleven axes, in the house's order."""
    return AXES


def methods(axis: str) -> list[str]:
    """The names of an axis's methods, without importing them. `LookupError` names the axes."""
    if axis not in AXES:
        raise LookupError(f"no axis {axis!r}; there are: {', '.join(AXES)}")
    spec = importlib.util.find_spec(f"fewer.{axis}")  # where others may have added a folder
    folder = spec.submodule_search_locations if spec else None
    ours = [m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_")]
    theirs = [name.partition("/")[2] for name in offered() if name.startswith(f"{axis}/")]
    return [f"{axis}/{name}" for name in sorted(ours + theirs)]


def offered() -> dict[str, EntryPoint]:
    """The methods of other packages, by name."""
    return _offered(tuple(sys.path))


@cache  # all metadata of all packages is read for it
def _offered(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group="fewer.methods")}


def find(name: str) -> type[Method]:
    """The class of `weights/wanda`; imports that one file only. `LookupError` names what is close."""
    axis, _, file = name.partition("/")
    if axis in AXES and name in methods(axis):
        if name in offered():
            return offered()[name].load()
        module = importlib.import_module(f"fewer.{axis}.{file}")
        return getattr(module, "".join(part.title() for part in file.split("_")))
    every = [m for a in AXES for m in methods(a)]
    close = difflib.get_close_matches(name, every) or [m for m in every if (file or axis) in m]
    raise LookupError(f"no method {name!r}; close: {', '.join(close) or 'none, see `fewer methods`'}")
