"""What there is to show of a feature to who explains it: from the index on disk, or from what Neuronpedia has of it."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewer.measure.interpretation import Example, Shown, texts_of

from .store import Index

Pairs = tuple[tuple[str, float], ...]


def shown_in(
    index: Index, words: Callable[[int], str], feature: int, count: int = 40, context: int = 32, seed: int = 0
) -> Shown:
    """As `measure.interpretation.shown`, with no codes in memory but those of this feature; the same texts, values in float16.

    `interpret(explainer, shown_in(index, words, feature))` explains and scores one. Tokens that were left out are silent.
    """
    places, values = index.of(feature)
    z = torch.zeros(index.tokens.size)
    z[torch.from_numpy(places)] = torch.from_numpy(values)
    return texts_of(z.view(index.tokens.shape), index.tokens, words, count, context, seed)


@dataclass(frozen=True)
class Page:
    """What one feature's page says there: `frequency` of its tokens, who is promoted and suppressed, and texts."""

    feature: int
    frequency: float
    promoted: Pairs
    suppressed: Pairs
    examples: tuple[Example, ...]


def from_neuronpedia(place: str | Path) -> Iterator[Page]:
    """The features of `batch-0.json`, `batch-1.json` and so on, as SAEDashboard and `to_neuronpedia` write them.

    Numbers have the three decimals that they were written with. ValueError names the file, the feature and the field.
    """
    files = sorted(Path(place).glob("batch-*.json"), key=lambda f: (len(f.name), f.name))
    if not files:
        raise ValueError(f"{place} holds no batch-0.json: give a directory that SAEDashboard or `fewer explore` wrote")
    for file in files:
        try:
            note = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as wrong:
            raise ValueError(f"{file} cannot be read: {wrong}") from wrong
        rows = note.get("features") if isinstance(note, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"{file}: 'features' must be a list")
        for number, row in enumerate(rows):
            yield _page(f"{file}: feature {number}", row)


def _page(where: str, row: Any) -> Page:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object in braces, got {type(row).__name__}")
    feature, texts = row.get("feature_index"), row.get("activations")
    if type(feature) is not int or feature < 0:
        raise ValueError(f"{where}: 'feature_index' is {feature!r}; it must be a whole number")
    if not isinstance(texts, list) or not all(isinstance(text, dict) for text in texts):
        raise ValueError(f"{where}: 'activations' must be a list of objects")
    examples = [Example(_words(where, t, "tokens"), _numbers(where, t, "values")) for t in texts]
    if bad := [e for e in examples if len(e.tokens) != len(e.loud)]:
        raise ValueError(f"{where}: {len(bad[0].tokens)} tokens and {len(bad[0].loud)} values in one of 'activations'")
    pairs = [
        tuple(zip(_words(where, row, f"{side}_str"), _numbers(where, row, f"{side}_values"), strict=False))
        for side in ("pos", "neg")
    ]
    return Page(
        feature,
        _numbers(where, {"frac_nonzero": [row.get("frac_nonzero")]}, "frac_nonzero")[0],
        *pairs,
        tuple(examples),
    )


def _words(where: str, row: dict[str, Any], name: str) -> tuple[str, ...]:
    found = row.get(name)
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise ValueError(f"{where}: {name!r} must be a list of texts")
    return tuple(found)


def _numbers(where: str, row: dict[str, Any], name: str) -> tuple[float, ...]:
    found = row.get(name)
    if not isinstance(found, list) or not all(type(x) in (int, float) and math.isfinite(x) for x in found):
        raise ValueError(f"{where}: {name!r} must be finite numbers")
    return tuple(map(float, found))
