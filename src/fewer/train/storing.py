"""Writing a store of activations in one pass of a model: shard by shard, each there whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewer.core.replace import exchange
from fewer.models.tap import Tap, activations, all_but

from .stored import DTYPES, FORMAT, MANIFEST, check, header_of

Told = Callable[[Mapping[str, Any]], None]
SHARD = 256 << 20  # bytes of a shard, which is in memory while it is written
NEAR = 2e-2  # relative: as near as one model's runs on two machines are, and two models' are not


def store(
    model: nn.Module,
    taps: Sequence[Tap],
    windows: Int[Tensor, "count length"],
    out: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    leave: frozenset[int] = frozenset(),
    about: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
    shard: int = SHARD,
    at_once: int = 8,
    force: bool = False,
    told: Told | None = None,
) -> Path:
    """What `taps` say of all tokens of some windows but those in `leave`, side by side, in the directory OUT; read it with `Stored`.

    Windows go to shards in a random order and the tokens of a shard are mixed, so that neighbours in a file are tokens of
    different texts. `shard` is in bytes; `about` says what JSON can hold (model, data, ...) and is part of what the job is.

    It all happens in `OUT.partial`, where a run that was killed finds the shards that are whole, and goes on with the next;
    OUT appears at the end. `told` hears windows, of, rows and bytes after each batch. ValueError: nothing to store, too small a
    disk, another model than the one that began, a number that is not finite in the model or in `dtype`, with its batch and site.
    """
    some = tuple(dict.fromkeys(taps))
    job = _Job(model, some, windows, dtype, leave, dict(about), seed, shard, at_once)
    out, part = Path(out), Path(f"{out}.partial")
    _begin(out, part, job, force)
    shards = []
    for number in range(len(job.shards)):
        file, rows = part / f"{number:05}.safetensors", job.rows_of(number)
        if not file.exists():
            _write(file, job.mixed(number, told), job.key)
        shards.append({"file": file.name, "rows": rows, "bytes": header_of(file)["begin"] + rows * job.row})
    note = {**job.note, "key": job.key, "rows": sum(s["rows"] for s in shards), "shards": shards}
    check(part, note)
    _settle(part / MANIFEST, json.dumps(note, indent=1) + "\n")
    (part / "job.json").unlink()
    if out.exists():
        exchange(part, out)
        shutil.rmtree(part)
    else:
        part.rename(out)
    return out


@dataclass(frozen=True, eq=False)
class _Job:
    """What is to be stored, and where each token goes: known from the tokens, without the model."""

    model: nn.Module
    taps: tuple[Tap, ...]
    windows: Int[Tensor, "count length"]
    dtype: torch.dtype
    leave: frozenset[int]
    about: dict[str, Any]
    seed: int
    shard: int
    at_once: int

    def __post_init__(self) -> None:
        if self.dtype not in [dtype for dtype, _, _ in DTYPES.values()]:
            raise ValueError(f"{self.dtype}: a store holds {', '.join(DTYPES)}")
        if not self.taps or not self.real.any():
            what = "no site" if not self.taps else f"{len(self.windows)} windows, and no token that is not left out"
            raise ValueError(f"{what}: there is nothing to store")

    @cached_property
    def real(self) -> Bool[Tensor, "count length"]:
        return all_but(self.leave)(self.windows)

    @cached_property
    def sites(self) -> dict[str, int]:
        with torch.no_grad():
            return {str(tap): activations(self.model, [tap], self.windows[:1, :2]).shape[-1] for tap in self.taps}

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return sum(self.sites.values()) * self.dtype.itemsize

    @cached_property
    def shards(self) -> list[Int64[Tensor, " some"]]:
        """The windows of each."""
        used = self.real.any(1).nonzero()[:, 0]
        draw = torch.Generator().manual_seed(self.seed)
        each = max(1, self.shard // (self.row * self.windows.shape[1]))
        return list(used[torch.randperm(len(used), generator=draw)].split(each))

    @cached_property
    def note(self) -> dict[str, Any]:
        """What the manifest says of the job."""
        name = next(name for name, (dtype, _, _) in DTYPES.items() if dtype == self.dtype)
        count, length = self.windows.shape
        text = {"windows": count, "length": length, "leave": sorted(self.leave), "seed": self.seed}
        return {"format": FORMAT, "sites": self.sites, "dtype": name, **text, "about": self.about}

    @cached_property
    def key(self) -> str:
        said = json.dumps([self.note, [len(some) for some in self.shards]], sort_keys=True).encode()
        return hashlib.sha256(said + self.windows.cpu().long().numpy().tobytes()).hexdigest()

    def rows_of(self, number: int) -> int:
        return int(self.real[self.shards[number]].sum())

    def order(self, number: int) -> Int64[Tensor, " rows"]:
        """Where in its shard each token goes."""
        draw = torch.Generator().manual_seed((self.seed << 32) + number)
        return torch.randperm(self.rows_of(number), generator=draw)

    def mixed(self, number: int, told: Told | None) -> Float[Tensor, "rows dim"]:
        """All rows of a shard, in their places."""
        order, at = self.order(number), 0
        found = torch.empty(len(order), sum(self.sites.values()), dtype=self.dtype)
        before = sum(len(some) for some in self.shards[:number])
        for some, rows in self.heard(number):
            found[order[at : at + len(rows)]] = rows
            at, before = at + len(rows), before + len(some)
            if told:
                of = sum(len(some) for some in self.shards)
                done = sum(self.rows_of(n) for n in range(number)) + at
                told({"windows": before, "of": of, "rows": done, "bytes": done * self.row})
        return found

    def heard(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Some windows of a shard at a time, and their rows. ValueError names batch, windows and site."""
        first = sum(-(-len(some) // self.at_once) for some in self.shards[:number])
        for batch, some in enumerate(self.shards[number].split(self.at_once), first):
            where = f"batch {batch} (windows {', '.join(map(str, some.tolist()))})"
            try:
                with torch.no_grad():
                    wide = activations(self.model, self.taps, self.windows[some])
            except ValueError as wrong:
                raise ValueError(f"{where}: {wrong}") from wrong
            rows = wide[self.real[some].to(wide.device)].to(self.dtype).cpu()
            for site, part in zip(self.sites, rows.split([*self.sites.values()], 1), strict=True):
                if not part.isfinite().all():
                    raise ValueError(f"{where}: site {site}: a number is too large for {self.note['dtype']}")
            yield some, rows


def _begin(out: Path, part: Path, job: _Job, force: bool) -> None:
    """A place to write in, with what an earlier run of the same job has finished."""
    if out.exists() and not force:
        raise ValueError(f"{out} exists; write --force (force=True) to replace it once the new one is whole")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.parent} is no directory to write {out.name} in")
    try:
        same = json.loads((part / "job.json").read_text(encoding="utf-8"))["key"] == job.key
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        _settle(part / "job.json", json.dumps({"key": job.key}))
    there = [number for number in range(len(job.shards)) if (part / f"{number:05}.safetensors").exists()]
    if there:
        _same_model(part / f"{there[0]:05}.safetensors", job, there[0])
    need = sum(job.rows_of(number) for number in range(len(job.shards)) if number not in there) * job.row
    if (free := shutil.disk_usage(part).free) < need:
        raise ValueError(f"{out} needs {need / 1e9:.3g} GB more, and its disk has {free / 1e9:.3g} GB left")


def _same_model(file: Path, job: _Job, number: int) -> None:
    """A shard that is there must say what the model says now."""
    _, now = next(job.heard(number))
    with safe_open(file, "pt") as opened:
        then = opened.get_tensor("rows")[job.order(number)[: len(now)]]
    away = ((now.float() - then.float()).norm() / then.float().norm().clamp(min=1e-12)).item()
    if away > NEAR:
        raise ValueError(
            f"{file} was written by another model: its activations are {away:.0%} away from what this one says; remove {file.parent} to begin anew"
        )


def _write(file: Path, rows: Float[Tensor, "rows dim"], key: str) -> None:
    part = file.with_name(f".{file.name}.part")
    try:
        save_file({"rows": rows}, part, metadata={"key": key})  # one word alone: the order of several is anyone's guess
    except SafetensorError as wrong:  # a full disk, say
        raise OSError(f"{file} cannot be written: {wrong}; the shards before it stay, and the same goes on") from wrong
    _rename(part, file)


def _settle(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    _rename(part, file)


def _rename(part: Path, file: Path) -> None:
    """What has its own name is whole, and may be read by whom a new file may."""
    os.umask(mask := os.umask(0))
    part.chmod(0o666 & ~mask)
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(file)
