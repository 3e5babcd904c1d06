"""Files of dictionaries: a directory that appears whole or not at all, and reading that says what is wrong with a file."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewer.core.replace import exchange

Tensors = dict[str, Tensor]


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A directory to write in, which stands at `out` afterwards; after an error nothing does, or what stood there before."""
    part = out.with_name(f".{out.name}.part")
    _remove(part)  # what a killed run left
    part.mkdir()
    try:
        yield part
        for file in filter(Path.is_file, part.rglob("*")):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        exchange(part, out) if out.exists() else part.rename(out)
    except SafetensorError as wrong:  # a full disk, say
        raise OSError(f"{out} cannot be written: {wrong}") from wrong
    finally:
        _remove(part)


def _remove(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """As safetensors."""
    save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, file)


def write_note(file: Path, note: Mapping[str, Any]) -> None:
    """As JSON."""
    file.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def note_of(file: Path) -> dict[str, Any]:
    """A JSON object. ValueError names the file."""
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as wrong:
        raise ValueError(f"{file} cannot be read: {wrong}") from wrong
    if not isinstance(note, dict):
        raise ValueError(f"{file}: expected an object in braces, got {type(note).__name__}")
    return note


def loaded(file: Path) -> Tensors:
    """What a safetensors file holds. ValueError names the file."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as wrong:
        raise ValueError(f"{file} cannot be read: {wrong}") from wrong


def tensors_of(file: Path, shapes: Mapping[str, str]) -> Tensors:
    """What a safetensors file holds, if it fits (see `fitting`); half precision becomes float32."""
    return widened(fitting(file, loaded(file), shapes))


def widened(tensors: Tensors) -> Tensors:
    """Half precision as float32; float64 stays."""
    return {name: t if t.dtype == torch.float64 else t.float() for name, t in tensors.items()}


def fitting(file: Path, found: Mapping[str, Tensor], shapes: Mapping[str, str]) -> Tensors:
    """The tensors that `shapes` names, each as wide as words say, the same word the same number.

    A name that ends with `?` may be missing. ValueError: one that is missing, of another shape, or not finite.

    >>> t = {"W": torch.ones(2, 3), "b": torch.ones(2)}
    >>> sorted(fitting(Path("x"), t, {"W": "in latents", "b?": "in", "s?": "latents"}))
    ['W', 'b']
    >>> fitting(Path("x"), t, {"W": "in latents", "b": "latents"})
    Traceback (most recent call last):
    ValueError: x: 'b' is [2]; [latents] = [3] would fit the other tensors
    """
    sizes: dict[str, int] = {}
    out = {}
    for name, words in shapes.items():
        must, name = not name.endswith("?"), name.removesuffix("?")
        if name not in found:
            if must:
                raise ValueError(f"{file} has no tensor {name!r}; it has {', '.join(sorted(found)) or 'none'}")
            continue
        t, axes = found[name], words.split()
        if t.ndim != len(axes) or any(sizes.get(axis, n) != n for axis, n in zip(axes, t.shape, strict=True)):
            right = [sizes.get(axis, axis) for axis in axes]
            raise ValueError(
                f"{file}: {name!r} is {list(t.shape)}; [{', '.join(axes)}] = {right} would fit the other tensors"
            )
        sizes |= dict(zip(axes, t.shape, strict=True))
        if not t.is_floating_point() or not t.isfinite().all():
            raise ValueError(f"{file}: {name!r} must hold finite real numbers; some are not")
        out[name] = t
    return out


def whole_number(file: Path, note: Mapping[str, Any], name: str, most: int) -> int:
    """ValueError unless `note[name]` is a whole number from 1 to `most`."""
    value = note.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{file}: {name}={value!r} must be a whole number from 1 to {most}")
    return value


def one_of(file: Path, note: Mapping[str, Any], name: str, known: Mapping[str, Any], default: str | None = None) -> Any:
    """What `known` holds for `note[name]`. ValueError lists what is known."""
    value = note.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{file}: {name}={value!r} is not known here; known: {', '.join(map(repr, known))}")
    return known[value]
