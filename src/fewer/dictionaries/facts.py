"""What is worth knowing of each feature: when it speaks, on what, what it promotes, and who is near."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fewer.features import Dictionary

from .store import Index
from .together import ByToken, Company, by_token

AT_ONCE = 256  # features whose logit weights and cosines are in memory together

Pair = tuple[int, float]


@dataclass(frozen=True)
class Example:
    """A stretch of text about a place where the feature peaks."""

    quantile: float  # of the ranking of peaks it was taken from; 1 is the loudest
    place: int
    first: int  # the place of its first token
    tokens: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Facts:
    """All of one feature, as plain numbers.

    `mean` and `loudest` are over the tokens at which it speaks (`loudest` by size, with its sign). `heard` are the tokens
    on which most of its activation falls, with their share. `promoted` and `suppressed` are the tokens with the largest and
    smallest logit weight W_U d, the decoder's row through the unembedding, without the final norm. `near` are the features
    with the largest cosine between decoder rows; `together` those with the largest Pearson correlation of activations,
    their cosine and the number of tokens at which both speak. `logits` is the histogram of all logit weights, with its ends.
    """

    feature: int
    count: int
    frequency: float
    mean: float
    loudest: float
    histogram: Sequence[int]
    low: float
    high: float
    heard: Sequence[Pair]
    examples: Sequence[Example]
    promoted: Sequence[Pair]
    suppressed: Sequence[Pair]
    near: Sequence[Pair]
    together: Sequence[Company]
    logits: tuple[Sequence[int], float, float] = ((), 0.0, 0.0)

    def plain(self) -> dict[str, Any]:
        """The same as dictionaries, lists and numbers."""
        return {**vars(self), "examples": [vars(e) for e in self.examples]}


@dataclass(frozen=True)
class Show:
    """How much is shown of a feature."""

    quantiles: tuple[tuple[float, int], ...] = (
        (1.0, 8),
        (0.9, 4),
        (0.7, 4),
        (0.4, 4),
        (0.0, 4),
    )  # and how many of each
    before: int = 16  # tokens
    after: int = 8
    bins: int = 32
    tokens: int = 10
    features: int = 8


def facts(
    index: Index,
    dictionary: Dictionary,
    unembedding: Float[Tensor, "vocabulary dim"] | None = None,
    show: Show = Show(),
) -> Iterator[Facts]:
    """The facts of all features in order, a few in memory at a time.

    Without an unembedding, or where the decoder does not write into what it reads, no token is promoted or suppressed.
    """
    if index.features != dictionary.latents:
        raise ValueError(f"the index is of {index.features} features, the dictionary has {dictionary.latents}")
    atoms = dictionary.decoder.float()
    if unembedding is not None and unembedding.shape[1] != atoms.shape[1]:
        unembedding = None
    with by_token(index) as turned:
        for start in range(0, index.features, AT_ONCE):
            some = range(start, min(start + AT_ONCE, index.features))
            near = _near(atoms, some, show.features)
            weights = _Weights.of(atoms[some.start : some.stop], unembedding, show)
            for i, feature in enumerate(some):
                yield _one(turned, feature, show, near[i], weights, i)


def unembedding_of(model: nn.Module) -> Float[Tensor, "vocabulary dim"] | None:
    """W_U of a language model; None if the model has no head over tokens."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    return None if head is None or not hasattr(head, "weight") else head.weight.detach().float()


def examples(index: Index, feature: int, show: Show = Show()) -> list[Example]:
    """Stretches of text at several quantiles of the ranking of windows, none shown twice."""
    found, there = [], set()
    peaks = index.peaks(feature)
    for quantile, count in show.quantiles:
        start = round((1 - quantile) * max(0, len(peaks) - count))  # as `Index.at`
        for place in peaks[start : start + count].tolist():
            if place not in there:
                there.add(place)
                first, tokens, values = index.around(feature, place, show.before, show.after)
                found.append(Example(quantile, place, first, tokens.tolist(), values.tolist()))
    return found


def _one(turned: ByToken, feature: int, show: Show, near: list[Pair], weights: "_Weights", i: int) -> Facts:
    index = turned.index
    _, values = index.of(feature)
    heights, low, high = index.histogram(feature, show.bins)
    speaks = len(values) > 0
    return Facts(
        feature,
        len(values),
        len(values) / max(1, index.seen),
        float(values.mean()) if speaks else 0.0,
        float(values[np.abs(values).argmax()]) if speaks else 0.0,
        heights.tolist(),
        low,
        high,
        heard(index, feature, show.tokens),
        examples(index, feature, show),
        weights.up[i],
        weights.down[i],
        near,
        turned.correlated(feature, show.features) if speaks else [],
        weights.spread[i],
    )


def heard(index: Index, feature: int, count: int) -> list[Pair]:
    """The tokens on which most of what a feature says falls, with their share of it."""
    places, values = index.of(feature)
    length = index.tokens.shape[1]
    kinds, inverse = np.unique(index.tokens[places // length, places % length], return_inverse=True)
    share = np.bincount(inverse, np.abs(values), len(kinds))
    best = np.argsort(-share, kind="stable")[:count]
    return [(int(kinds[i]), float(share[i] / share.sum())) for i in best]


def _near(atoms: Tensor, some: range, count: int) -> list[list[Pair]]:
    """Largest cosines of decoder rows, oneself apart."""
    rows = F.normalize(atoms[some.start : some.stop], dim=1)
    cosine = torch.cat([rows @ F.normalize(part, dim=1).T for part in atoms.split(4096)], dim=1)
    cosine[torch.arange(len(rows)), torch.tensor(some)] = -2
    return _pairs(cosine.topk(min(count, len(atoms) - 1), dim=1))


@dataclass(frozen=True)
class _Weights:
    """Of some features, the logit weights: the largest, the smallest, and how they are spread."""

    up: list[list[Pair]]
    down: list[list[Pair]]
    spread: list[tuple[list[int], float, float]]

    @classmethod
    def of(cls, rows: Tensor, unembedding: Tensor | None, show: Show) -> "_Weights":
        if unembedding is None:
            return cls([[] for _ in rows], [[] for _ in rows], [([], 0.0, 0.0) for _ in rows])
        logits = rows.to(unembedding) @ unembedding.T
        count = min(show.tokens, len(unembedding))
        spread = [(r.histc(show.bins).int().tolist(), r.min().item(), r.max().item()) for r in logits.cpu()]
        return cls(_pairs(logits.topk(count, dim=1)), _pairs(logits.topk(count, dim=1, largest=False)), spread)


def _pairs(found: "torch.return_types.topk") -> list[list[Pair]]:
    rows = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [list(zip(index, value, strict=True)) for index, value in rows]
