"""Building an index in one pass over tokens: sorted runs are put aside as codes come, and laid into their places at the end."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from fewer.layout import Codes

from .store import ARRAYS, FORMAT, Index, open_index

CHUNK = 1 << 21  # nonzeros held in memory before they are sorted and put aside
SAID = np.dtype([("feature", "<u4"), ("place", "<u4"), ("value", "<f4")])


class Spool:
    """Codes of all tokens in order, at most `chunk` nonzeros (and one batch) in memory, whatever the number of features.

    It all happens in `OUT.partial`; OUT appears at the end, whole. A run that was killed finds there how many tokens are
    `done`, and goes on with the next. A spool of other tokens or another `about` begins anew.

    >>> import tempfile, torch
    >>> spool = Spool(tempfile.mkdtemp() + "/index", 3, torch.tensor([[7, 8], [9, 7]]))
    >>> spool.add(Codes(torch.tensor([[0], [2], [0], [0]]), torch.tensor([[1.0], [5.0], [0.0], [4.0]]), 3))
    >>> index = spool.finish()
    >>> index.of(0), index.counts.tolist()
    ((array([0, 3]), array([1., 4.], dtype=float32)), [2, 0, 1])
    """

    def __init__(
        self,
        out: str | Path,
        features: int,
        tokens: Int[Tensor, "windows length"],
        about: Mapping[str, Any] | None = None,
        chunk: int = CHUNK,
    ):
        if tokens.numel() >= 2**32 or tokens.numel() == 0 or tokens.min() < 0:
            raise ValueError(f"{tokens.numel()} tokens: an index holds 1 to 2^32 - 1 of them, none negative")
        self.out, self.features, self.chunk, self.about = Path(out), features, chunk, dict(about or {})
        if self.out.exists():
            raise ValueError(f"{self.out} exists; choose another name, or remove it first")
        self.tokens = np.ascontiguousarray(tokens.cpu().numpy().astype(ARRAYS["tokens"]))
        said = json.dumps([FORMAT, features, self.about, self.tokens.shape], sort_keys=True).encode()
        self.key = hashlib.sha256(said + self.tokens.tobytes()).hexdigest()
        self.part = self.out.with_name(f"{self.out.name}.partial")
        self.waiting: list[np.ndarray] = []
        self.runs, self.done, self.seen = self._before()
        self.added = self.done

    @property
    def held(self) -> int:
        """Bytes of the nonzeros in memory."""
        return sum(part.nbytes for part in self.waiting)

    def add(self, codes: Codes, real: Bool[Tensor, " rows"] | None = None) -> None:
        """The codes of the next tokens; those that are not `real` are left out."""
        rows = len(codes.index)
        if codes.size != self.features or self.added + rows > self.tokens.size:
            left = self.tokens.size - self.added
            raise ValueError(f"codes of {rows} tokens, {codes.size} features; expected {left} at most, {self.features}")
        value = codes.value.detach().float()
        if not value.isfinite().all():
            row = int((~value.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"token {self.added + row}: a code is NaN or infinite; nothing is put aside of this batch")
        value = value if real is None else value * real.to(value.device)[:, None]
        self.waiting.append(_said(codes.index.cpu().numpy(), value.cpu().numpy(), self.added))
        self.added += rows
        self.seen += rows if real is None else int(real.sum())
        if self.held >= self.chunk * SAID.itemsize:
            self._put_aside()

    def finish(self) -> Index:
        """Lay the runs into their places; the index, whole."""
        if self.added != self.tokens.size:
            raise ValueError(f"{self.added} of {self.tokens.size} tokens were coded: add the others first")
        self._put_aside()
        offsets, scales = self._measured()
        nonzeros = int(offsets[-1])
        if not nonzeros:
            raise ValueError("no feature spoke at any token: there is nothing to look up")
        where = self.part / "whole"
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        self._lay(where, offsets, scales)
        for name, array in (("offsets", offsets), ("scales", scales), ("tokens", self.tokens)):
            np.save(where / f"{name}.npy", array.astype(ARRAYS[name]))
        windows, length = self.tokens.shape
        note = {"format": FORMAT, "features": self.features, "nonzeros": nonzeros, "windows": windows}
        note |= {"length": length, "seen": self.seen, "key": self.key, "about": self.about}
        (where / "index.json").write_text(json.dumps(note, indent=1), encoding="utf-8")
        os.replace(where, self.out)
        shutil.rmtree(self.part)
        return open_index(self.out)

    def _measured(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each feature's list begins, and the power of two that its values are divided by."""
        counts, loudest = np.zeros(self.features, np.int64), np.zeros(self.features, np.float32)
        for run in self._kept():
            some, first = np.unique(run["feature"], return_index=True)
            counts += np.bincount(run["feature"], minlength=self.features)
            loudest[some] = np.maximum(loudest[some], np.maximum.reduceat(np.abs(run["value"]), first))
        exponent = np.where(loudest > 0, np.frexp(loudest)[1] - 15, 0)
        return np.concatenate([[0], np.cumsum(counts)]), np.ldexp(np.float32(1), exponent).astype(np.float32)

    def _lay(self, where: Path, offsets: np.ndarray, scales: np.ndarray) -> None:
        """Each run's part of a list goes behind those of the runs before it: their places are smaller."""
        shape, cursor = (int(offsets[-1]),), offsets[:-1].copy()
        new = np.lib.format.open_memmap
        places = new(where / "places.npy", "w+", ARRAYS["places"], shape)
        values = new(where / "values.npy", "w+", ARRAYS["values"], shape)
        for run in self._kept():
            feature, size = run["feature"], np.bincount(run["feature"], minlength=self.features)
            at = np.arange(len(run)) + (cursor - (np.cumsum(size) - size))[feature]
            places[at], values[at] = run["place"], (run["value"] / scales[feature]).astype(ARRAYS["values"])
            cursor += size
        places.flush(), values.flush()

    def _kept(self) -> Iterator[np.ndarray]:
        return (np.load(self._run(i), allow_pickle=False) for i in range(self.runs))

    def _run(self, number: int) -> Path:
        return self.part / f"run-{number:05}.npy"

    def _put_aside(self) -> None:
        """A run is there once the note says so."""
        if self.waiting:
            run = np.concatenate(self.waiting)
            np.save(self._run(self.runs), run[np.argsort(run["feature"], kind="stable")])
            self.runs, self.done, self.waiting = self.runs + 1, self.added, []
            note = json.dumps({"key": self.key, "runs": self.runs, "done": self.done, "seen": self.seen})
            new = self.part / ".note.part"
            new.write_text(note, encoding="utf-8")
            os.replace(new, self.part / "note.json")

    def _before(self) -> tuple[int, int, int]:
        """What an earlier run of the same job has put aside: runs, tokens, and how many of those were real."""
        try:
            note = json.loads((self.part / "note.json").read_text(encoding="utf-8"))
            if note["key"] == self.key and all(self._run(i).is_file() for i in range(note["runs"])):
                return note["runs"], note["done"], note["seen"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        return 0, 0, 0


def _said(index: np.ndarray, value: np.ndarray, first: int) -> np.ndarray:
    """The nonzeros of some rows, by place; what one row says twice of a feature adds up."""
    row, slot = value.nonzero()
    out = np.empty(len(row), SAID)
    out["feature"], out["place"], out["value"] = index[row, slot], row + first, value[row, slot]
    name = (out["place"].astype(np.int64) << 32) | out["feature"]
    unique, inverse = np.unique(name, return_inverse=True)
    if len(unique) == len(name):
        return out
    both = np.empty(len(unique), SAID)
    both["feature"], both["place"] = unique & 0xFFFFFFFF, unique >> 32
    both["value"] = np.bincount(inverse, out["value"])
    return both[both["value"] != 0]


def spooled(
    out: str | Path,
    features: int,
    tokens: Int[Tensor, "windows length"],
    about: Mapping[str, Any],
    chunk: int = CHUNK,
) -> Spool | Index:
    """The index at OUT if it was built of the same tokens by the same `about`; otherwise a spool to build it."""
    out = Path(out)
    if not out.exists():
        return Spool(out, features, tokens, about, chunk)
    index = open_index(out)
    same = index.features == features and dict(index.about) == dict(about)
    if same and np.array_equal(index.tokens, tokens.cpu().numpy()):
        return index
    raise ValueError(f"{out} is an index of another dictionary or of other tokens; choose another name, or remove it")
