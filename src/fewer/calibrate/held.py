"""What was learnt of each module of a model: tensors by name, a value like any other, kept in one safetensors file."""

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class Held(Mapping[str, Tensor]):
    """Tensors by name, as a value: two are equal if all their tensors are.

    >>> a, b = Held({"w": torch.ones(2)}), Held({"w": torch.ones(2)})
    >>> a == b, hash(a) == hash(b), a == Held({"w": torch.zeros(2)}), a
    (True, True, False, Held(w [2]))
    """

    def __init__(self, tensors: Mapping[str, Tensor] = {}) -> None:
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Held) or self._shapes() != other._shapes():
            return False
        return all(t is other[name] or torch.equal(t, other[name]) for name, t in self.items())

    def __hash__(self) -> int:
        return hash(self._shapes())

    def __repr__(self) -> str:
        return f"Held({', '.join(f'{name} {list(shape)}' for name, shape in self._shapes())})"

    def to(self, device: torch.device) -> "Held":
        return Held({name: t.to(device) for name, t in self.items()})

    def _shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple(sorted((name, tuple(t.shape)) for name, t in self.items()))


NONE = Held()


def write_parts(path: str | Path, parts: Mapping[str, Mapping[str, Tensor]], note: Mapping[str, str]) -> None:
    """Write the parts of each module, by `module.part`; the file appears whole or not at all."""
    path = Path(path)
    tensors = {
        f"{module}.{name}": t.detach().cpu().contiguous() for module, p in parts.items() for name, t in p.items()
    }
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata={**note, "parts": " ".join(dict.fromkeys(n for p in parts.values() for n in p))})
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def read_parts(path: str | Path) -> dict[str, Held]:
    """What was learnt, by module. ValueError or FileNotFoundError say what is wrong with the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"nothing learnt at {path}; learn it: `fewer train METHOD BUDGET -o {path}`")
    return _read(str(path), Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(path: str, changed: int) -> dict[str, Held]:
    try:
        tensors = load_file(path)
    except SafetensorError as wrong:
        raise ValueError(f"{path} is no safetensors file, in which what was learnt is kept: {wrong}") from None
    found: dict[str, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        module, part = _parted(name)
        found.setdefault(module, {})[part] = t
    return {module: Held(p) for module, p in found.items()}


def _parted(name: str) -> tuple[str, str]:
    """A tensor's module and its name within: an indexer is a module in its attention's, as checkpoints have it.

    >>> _parted("model.layers.0.self_attn.indexer.wk.weight"), _parted("h.0.attn.for_keys")
    (('model.layers.0.self_attn', 'indexer.wk.weight'), ('h.0.attn', 'for_keys'))
    """
    before, inner, after = name.partition(".indexer.")
    if inner:
        return before, f"indexer.{after}"
    module, _, part = name.rpartition(".")
    return module, part
