"""The tensors of a checkpoint by the names that its model gives them, in whatever way they are stored."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import safe_open
from torch import Tensor

from fewer.layout import Layout

from .foreign import Way, gather

T = TypeVar("T")


class Checkpoint:
    """A directory of safetensors. Nothing is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self._files = path, files(path)
        self.foreign = gather(self._files)
        taken = {key for _, keys in self.foreign.values() for key in keys}
        self.names = [name for name in self._files if name not in taken] + list(self.foreign)

    def read(self, name: str) -> Tensor:
        """One tensor, whole."""
        if name not in self.foreign:
            return self._stored(name)
        return self._theirs(name, lambda way, tensors: way.read(*tensors)[0])

    def layout(self, name: str) -> Layout:
        """One of the maps in `foreign`, packed as it is stored."""
        return self._theirs(name, lambda way, tensors: way.layout(*tensors))

    def _theirs(self, name: str, read: Callable[[Way, list[Tensor]], T]) -> T:
        way, keys = self.foreign[name]
        try:
            return read(way, [self._stored(key) for key in keys])
        except (ValueError, RuntimeError) as wrong:  # shapes that do not fit each other
            raise ValueError(f"{self.path}: {name} is stored as {', '.join(keys)}, but {wrong}") from wrong

    def _stored(self, key: str) -> Tensor:
        with safe_open(self.path / self._files[key], "pt") as opened:
            return opened.get_tensor(key)


def files(path: Path) -> dict[str, str]:
    """Which file holds which tensor."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        return json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    found: dict[str, str] = {}
    one = path / "model.safetensors"  # anything beside it is not the model: a probe, an adapter
    for file in [one] if one.is_file() else sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), file.name)
    return found
