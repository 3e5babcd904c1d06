"""A dictionary on disk: safetensors and a note in JSON, and a probe by which loading is checked."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fewer.core import budget
from fewer.core.spell import method_of, spell
from fewer.features import Dictionary, Sparsifier

FORMAT = 1  # what this version writes, and the newest that it reads
TENSORS, NOTE = "dictionary.safetensors", "dictionary.json"
NAMES = ("encoder", "encoder_bias", "decoder", "decoder_bias")
PROBES = 8  # inputs whose outputs are kept
NEAR = 1e-3  # how far an output may be from the kept one, as a share of the largest


def save(dictionary: Dictionary, out: str | Path, force: bool = False) -> Path:
    """Write a directory, whole or not at all. `force` replaces one that is there once the new one is whole.

    `dictionary.json` says sparsifier, budget, sites and whatever `about` holds; `dictionary.safetensors` holds the matrices, what
    the sparsifier has learnt as `own.NAME`, and a probe: some inputs and what the dictionary made of them.
    """
    out = Path(out)
    if out.exists() and not force:
        raise ValueError(f"{out} exists; write force=True to replace it")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.parent} is no directory to write {out.name} in")
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir()
    d = dictionary.to("cpu")
    probe = _probe(d)
    tensors = d.tensors() | {f"own.{name}": t for name, t in d.own.items()} | {"probe.x": probe, "probe.said": d(probe)}
    note = {
        "format": FORMAT,
        "sparsifier": spell(d.sparsifier),
        "budget": str(d.budget),
        "reads": d.reads,
        "writes": d.writes,
        "about": dict(d.about),
    }
    try:
        save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, part / TENSORS)
    except SafetensorError as wrong:
        raise OSError(f"the dictionary cannot be written to {out}: {wrong}") from wrong
    (part / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    if out.exists():
        out.rename(old)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)
    return out


def read(folder: Path) -> Dictionary:
    """What `save` wrote. ValueError: a file that is missing, cut short, newer than this version, or says something else now."""
    note = _note(folder / NOTE)
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as wrong:
        raise ValueError(f"{folder / TENSORS} cannot be read: {wrong}") from wrong
    if missing := [name for name in NAMES if name not in tensors]:
        raise ValueError(f"{folder / TENSORS} has no {missing[0]!r}")
    sparsifier = method_of(note["sparsifier"], "features")
    if not isinstance(sparsifier, Sparsifier):
        raise ValueError(f"{folder / NOTE}: sparsifier={note['sparsifier']!r} is no method of the axis features")
    _fits(folder, tensors)
    found = Dictionary(
        sparsifier,
        budget(note["budget"]),
        *(tensors[name] for name in NAMES),
        {name[4:]: t for name, t in tensors.items() if name.startswith("own.")},
        tensors.get("skip"),
        tuple(note["reads"]),
        tuple(note["writes"]),
        note["about"],
    )
    if "probe.x" in tensors:
        check(folder, found, tensors["probe.x"], tensors["probe.said"])
    return found


def check(place: Path, dictionary: Dictionary, x: torch.Tensor, said: torch.Tensor) -> None:
    """ValueError if the dictionary says something else of `x` than it did when it was written."""
    off = ((dictionary(x) - said).abs().amax(1) > NEAR * said.abs().max()).sum().item()
    if off > len(x) // 4:  # a latent at its threshold may fall on the other side on another machine
        raise ValueError(
            f"{place}: {off} of {len(x)} probes come out otherwise than when it was written: is the file damaged?"
        )


def _probe(d: Dictionary) -> torch.Tensor:
    """Inputs at which several latents speak: what a few of them stand for."""
    make = torch.Generator().manual_seed(0)
    some = torch.randint(d.latents, (PROBES, 4), generator=make)
    return torch.nn.functional.normalize(d.encoder.float(), dim=1)[some].sum(1) * 4


def _note(file: Path) -> dict[str, Any]:
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as wrong:
        raise ValueError(f"{file} cannot be read: {wrong}") from wrong
    kinds = {"format": int, "sparsifier": str, "budget": str, "reads": list, "writes": list, "about": dict}
    for name, kind in kinds.items():
        if not isinstance(note, dict) or not isinstance(note.get(name), kind):
            raise ValueError(f"{file}: {name!r} must be of type {kind.__name__}")
    if note["format"] > FORMAT:
        raise ValueError(
            f"{file}: written by a newer version (format {note['format']}, this one reads {FORMAT}); update fewer"
        )
    return note


def _fits(folder: Path, t: dict[str, torch.Tensor]) -> None:
    (n, d_in), d_out = t["encoder"].shape, t["decoder"].shape[-1]
    right = {"decoder": (n, d_out), "encoder_bias": (n,), "decoder_bias": (d_out,), "skip": (d_out, d_in)}
    for name, shape in right.items():
        if name in t and tuple(t[name].shape) != shape:
            raise ValueError(
                f"{folder / TENSORS}: {name!r} is {list(t[name].shape)}, the encoder asks for {list(shape)}"
            )
    if bad := [name for name in t if not t[name].isfinite().all()]:
        raise ValueError(f"{folder / TENSORS}: {bad[0]!r} is NaN or infinite somewhere")
