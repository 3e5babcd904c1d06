"""One inverted index a dictionary, on disk: where each feature speaks and how loud. Pages, explanations and circuits read it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int64, UInt32

FORMAT = "fewer features 1"
ARRAYS = {"offsets": "<i8", "places": "<u4", "values": "<f2", "scales": "<f4", "tokens": "<u4"}

Places = Int64[np.ndarray, " count"]
Loud = Float32[np.ndarray, " count"]


@dataclass(frozen=True, eq=False)
class Index:
    """Of each feature the places at which it is not zero, ascending, and its values there. Arrays are mapped, not read.

    A place is a token's number: window * length + position. Feature f has `offsets[f]` to `offsets[f + 1]`; a value is
    `values * scales[f]`, where the scale is a power of two that brings the loudest near half of float16's range, so a
    value is off by at most 2^-11 of itself (down to 2^-28 of the loudest). `seen` of the tokens were coded: those left
    out, special ones, are in no list and in no frequency.

    Bytes: 6 a nonzero, 12 a feature, 4 a token.
    """

    offsets: Int64[np.ndarray, " offsets"]
    places: UInt32[np.ndarray, " nonzeros"]
    values: Float16[np.ndarray, " nonzeros"]
    scales: Float32[np.ndarray, " features"]
    tokens: UInt32[np.ndarray, "windows length"]
    seen: int
    about: Mapping[str, Any]

    @property
    def features(self) -> int:
        return len(self.scales)

    @property
    def nonzeros(self) -> int:
        return len(self.places)

    @property
    def counts(self) -> Int64[np.ndarray, " features"]:
        """At how many tokens each feature speaks."""
        return np.diff(self.offsets)

    @property
    def bytes(self) -> int:
        """Of the lists, on disk: places, values, offsets and scales; the tokens apart."""
        return sum(getattr(self, name).nbytes for name in ARRAYS if name != "tokens")

    def of(self, feature: int) -> tuple[Places, Loud]:
        """The places of a feature and what it says there."""
        here = self._slice(feature)
        return self.places[here].astype(np.int64), self.values[here].astype(np.float32) * self.scales[feature]

    def peaks(self, feature: int) -> Places:
        """The loudest place of each window in which the feature speaks, loudest window first; ties to the earlier."""
        places, values = self.of(feature)
        order = np.lexsort((places, -np.abs(values)))
        _, first = np.unique(places[order] // self.tokens.shape[1], return_index=True)
        return places[order[np.sort(first)]]

    def at(self, feature: int, quantile: float, count: int) -> Places:
        """`count` neighbours in the ranking of `peaks`: 1 is the loudest, 0.5 those in the middle, 0 the quietest."""
        peaks = self.peaks(feature)
        start = round((1 - quantile) * max(0, len(peaks) - count))
        return peaks[start : start + count]

    def histogram(self, feature: int, bins: int) -> tuple[Int64[np.ndarray, " bins"], float, float]:
        """How many values fall into equal bins, and the two ends: from zero, or the least, to the greatest, or zero."""
        _, values = self.of(feature)
        low, high = (min(0.0, float(values.min())), max(0.0, float(values.max()))) if len(values) else (0.0, 1.0)
        return np.histogram(values, bins, (low, high))[0].astype(np.int64), low, high

    def together(self, one: int, other: int) -> Places:
        """The places at which both speak."""
        return np.intersect1d(self.of(one)[0], self.of(other)[0], assume_unique=True)

    def around(
        self, feature: int, place: int, before: int, after: int
    ) -> tuple[int, UInt32[np.ndarray, " span"], Float32[np.ndarray, " span"]]:
        """A stretch of the window about a place: its first place, its tokens, and the feature's value at each."""
        length = self.tokens.shape[1]
        window = place // length * length
        first, end = max(window, place - before), min(window + length, place + after + 1)
        here = self.places[self._slice(feature)]
        a, b = np.searchsorted(here, [first, end])
        values = np.zeros(end - first, np.float32)
        said = self.values[self.offsets[feature] + a : self.offsets[feature] + b].astype(np.float32)
        values[here[a:b].astype(np.int64) - first] = said * self.scales[feature]
        return first, self.tokens[place // length, first - window : end - window], values

    def _slice(self, feature: int) -> slice:
        if not 0 <= feature < self.features:
            raise ValueError(f"no feature {feature}: there are 0 to {self.features - 1}")
        return slice(int(self.offsets[feature]), int(self.offsets[feature + 1]))


def open_index(path: str | Path) -> Index:
    """The index in a directory, its arrays mapped. ValueError: it is missing, cut short, or its parts do not fit."""
    path = Path(path)
    try:
        note = json.loads((path / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as wrong:
        raise ValueError(f"{path} is no index of features: index.json cannot be read ({wrong})") from wrong
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        raise ValueError(f"{path / 'index.json'}: format is not {FORMAT!r}; build the index anew")
    arrays = {name: _mapped(path / f"{name}.npy", kind) for name, kind in ARRAYS.items()}
    features, nonzeros, windows, length, seen = (
        _count(path, note, name) for name in ("features", "nonzeros", "windows", "length", "seen")
    )
    right = dict.fromkeys(("places", "values"), (nonzeros,))
    right |= {"offsets": (features + 1,), "scales": (features,), "tokens": (windows, length)}
    for name, shape in right.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{path / name}.npy: shape {arrays[name].shape}, index.json says {shape}")
    ends = arrays["offsets"]
    if ends[0] != 0 or ends[-1] != nonzeros or (np.diff(ends) < 0).any():
        raise ValueError(f"{path}/offsets.npy: must rise from 0 to the {nonzeros} nonzeros")
    return Index(**arrays, seen=seen, about=note.get("about", {}))


def _count(path: Path, note: Mapping[str, Any], name: str) -> int:
    value = note.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{path / 'index.json'}: {name} is {value!r}; it must be a whole number")
    return value


def _mapped(file: Path, kind: str) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as wrong:
        raise ValueError(f"{file} cannot be read ({wrong}); build the index anew") from wrong
    if array.dtype != np.dtype(kind):
        raise ValueError(f"{file}: numbers of type {array.dtype.str}, expected {kind}")
    return array.view(np.ndarray)  # still mapped; memmap's own class makes each look-up slow
