"""Packages that a training step asks for by name and never uses: where they are not installed, stand-ins that do nothing."""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest.mock import MagicMock

NAMES = ("accelerate", "datasets", "nnsight", "pandas", "pyarrow", "wandb", "zstandard")


class Absent(MetaPathFinder, Loader):
    def __init__(self) -> None:
        self.names = {name for name in NAMES if importlib.util.find_spec(name) is None}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in self.names else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        stand_in = MagicMock(name=spec.name)
        stand_in.__path__, stand_in.__spec__ = [], spec
        return stand_in

    def exec_module(self, module: ModuleType) -> None:
        return


def stand_in() -> None:
    sys.meta_path.append(Absent())
