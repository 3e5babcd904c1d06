"""Activations on a disk, as a stream to learn from: more of them than fit into memory, and the model is run once for all dictionaries."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .order import Order
from .source import Source

FORMAT = "fewer.activations 1"
MANIFEST = "activations.json"
DTYPES = {
    "float32": (torch.float32, "F32", np.int32),
    "bfloat16": (torch.bfloat16, "BF16", np.int16),
    "float16": (torch.float16, "F16", np.int16),
}
HEADER = 1 << 20  # bytes that the header of a safetensors file may have


@dataclass(frozen=True, eq=False)
class Stored(Source):
    """What `store` wrote at `place`, every row once a pass, mixed over the whole store.

    The order is a function of `seed` and the pass alone (see `Order`), so a run that was killed goes on to the bit.

    A pass reads every byte about once. `run` rows that lie side by side are one read: 64 rows of 768 columns in bfloat16 are
    96 KiB, and their neighbours in the file are tokens of other texts, as each shard was mixed when it was written. A pool of
    32768 rows is in memory at once, in the store's own dtype: 48 MiB of such rows. `run=1` is the order of `Rows`, all orders
    being as likely, and costs a page of 4 KiB and a seek for each row: for a store that fits into memory. Measured on such
    rows, 2 GB of them: 175 000 rows a second from the disk in runs of 64, 10 000 in runs of one; from memory 1 000 000 and 620 000.

    ValueError: a store that is not finished, lacks a file, was cut off, or is not ours; before any work.
    """

    place: str | Path
    batch: int = 2048
    seed: int = 0
    run: int = 64
    pool: int = 1 << 15
    part: tuple[int, int] = (0, 1)  # which of how many parts of each batch is read
    device: str = "cpu"  # where batches are brought, and so where is learnt from them

    def __post_init__(self) -> None:
        check(Path(self.place), self.manifest)
        self.order  # noqa: B018  too few rows are refused here

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """What is written beside the shards: format, sites, dtype, rows, shards, and what `store` was told of model and text."""
        return manifest_of(Path(self.place))

    @property
    def sites(self) -> dict[str, int]:
        """The columns of each site, in their order; `learn` wants to know them."""
        return dict(self.manifest["sites"])

    @property
    def mixing(self) -> object:
        text = [self.manifest.get(name) for name in ("windows", "length", "leave", "seed")]
        return (
            "stored",
            len(self),
            self.batch,
            self.seed,
            self.run,
            self.pool,
            *map(str, text),
            len(self.manifest["shards"]),
        )

    def __len__(self) -> int:
        return sum(shard["rows"] for shard in self.manifest["shards"])

    @cached_property
    def order(self) -> Order:
        return Order(len(self), self.batch, self.seed, self.run, self.pool)

    @cached_property
    def _shards(self) -> list[np.ndarray]:
        _, _, kind = DTYPES[self.manifest["dtype"]]
        width = sum(self.sites.values())
        return [_mapped(Path(self.place) / s["file"], kind, s["rows"], width) for s in self.manifest["shards"]]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(shard) for shard in self._shards])

    def share(self, rank: int, size: int) -> "Stored":
        return replace(self, part=(rank, size))

    def since(self, number: int) -> Iterator[Tensor]:
        rank, size = self.part
        for places in self.order.since(number):
            mine = np.array_split(places.reshape(-1, self.batch), size, axis=1)[rank]
            for rows in self.rows(mine.reshape(-1)).split(mine.shape[1]):
                yield rows.to(self.device).float()

    def rows(self, places: Int64[np.ndarray, " n"]) -> Float[Tensor, "n dim"]:
        """The rows at some places, in the store's dtype; read in the order in which they lie on the disk."""
        inward = np.argsort(places, kind="stable")
        ordered = places[inward]
        found = np.empty((len(places), self._shards[0].shape[1]), self._shards[0].dtype)
        cuts = np.searchsorted(ordered, [0, *self._ends])
        for shard, end, a, b in zip(self._shards, self._ends, cuts, cuts[1:], strict=False):
            if a < b:
                found[inward[a:b]] = shard[ordered[a:b] - (end - len(shard))]
        return torch.from_numpy(found).view(DTYPES[self.manifest["dtype"]][0])


def manifest_of(place: Path) -> dict[str, Any]:
    """What the store says of itself. ValueError: there is none, or not in this form."""
    file = place / MANIFEST
    if not file.exists() and place.with_name(f"{place.name}.partial").exists():
        raise ValueError(f"{place} is not finished: store the same again, and it goes on where it stopped")
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as wrong:
        raise ValueError(f"{place} is no store of activations: {file} cannot be read ({wrong})") from wrong
    form = note.get("format") if isinstance(note, dict) else None
    if form != FORMAT:
        raise ValueError(f"{file}: format {form!r} found, {FORMAT!r} expected")
    sites, shards = note.get("sites"), note.get("shards")
    whole = isinstance(sites, dict) and sites and all(type(n) is int and n > 0 for n in sites.values())
    whole = whole and isinstance(shards, list) and note.get("dtype") in DTYPES and isinstance(note.get("key"), str)
    if not whole or not all(
        isinstance(s, dict) and type(s.get("rows")) is int and type(s.get("bytes")) is int and _inside(s.get("file"))
        for s in shards
    ):
        raise ValueError(f"{file} does not say its sites, dtype, key and shards as it should: store them again")
    if sum(shard["rows"] for shard in shards) < 1:
        raise ValueError(f"{place} is empty: it holds {len(shards)} shards and no row")
    return note


def check(place: Path, note: Mapping[str, Any]) -> None:
    """ValueError unless each shard is there, whole and of this store; headers are read, activations are not."""
    for shard in note["shards"]:
        file = place / shard["file"]
        if not file.is_file():
            raise ValueError(f"{file} is missing: {MANIFEST} expects {shard['rows']} rows there")
        if (found := file.stat().st_size) != shard["bytes"]:
            raise ValueError(f"{file}: {found} bytes found, {shard['bytes']} expected; store the activations again")
        head = header_of(file)
        found = head.get("__metadata__", {}).get("key")
        if found != note["key"]:
            raise ValueError(f"{file} is of another store: key {found!r} found, {note['key']!r} expected")
        shape, kind = [shard["rows"], sum(note["sites"].values())], DTYPES[note["dtype"]][1]
        rows = head.get("rows", {})
        if (rows.get("dtype"), rows.get("shape")) != (kind, shape):
            raise ValueError(f"{file}: {rows.get('dtype')} {rows.get('shape')} found, {kind} {shape} expected")


def header_of(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors. ValueError: it is none."""
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if size > HEADER:
                raise ValueError(f"a header of {size} bytes")
            head = json.loads(opened.read(size))
    except (OSError, ValueError) as wrong:
        raise ValueError(f"{file} is no safetensors file: {wrong}") from wrong
    return {**head, "begin": 8 + size}


def _mapped(file: Path, kind: type, rows: int, width: int) -> np.ndarray:
    head = header_of(file)
    return np.memmap(file, kind, "r", head["begin"] + head["rows"]["data_offsets"][0], (rows, width))


def _inside(name: Any) -> bool:
    """Whether a file's name is one, and leads nowhere else."""
    return isinstance(name, str) and Path(name).name == name
