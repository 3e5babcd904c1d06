"""Which features speak at the same tokens: Pearson's correlation of their activations, over all tokens."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped, UInt32

from .store import Index

Company = tuple[int, float, float, int]  # a feature, Pearson's r, the cosine, at how many tokens both speak


@dataclass(frozen=True, eq=False)
class ByToken:
    """The index turned round: who speaks at each token. Mapped from a file that is gone after use."""

    index: Index
    ends: Int64[np.ndarray, " ends"]  # token t has `ends[t]` to `ends[t + 1]`
    features: UInt32[np.ndarray, " nonzeros"]
    values: Shaped[np.ndarray, " nonzeros"]
    sums: Float64[np.ndarray, " features"]
    squares: Float64[np.ndarray, " features"]

    def correlated(self, feature: int, count: int) -> list[Company]:
        """The features most correlated with one, over the tokens seen.

        r = (N S_ab - S_a S_b) / sqrt((N S_aa - S_a^2) (N S_bb - S_b^2)) with sums S over N tokens, silent ones too.
        """
        places, said = self.index.of(feature)
        start, size = self.ends[places], self.ends[places + 1] - self.ends[places]
        at = np.repeat(start - (np.cumsum(size) - size), size) + np.arange(size.sum())
        who = self.features[at].astype(np.int64)
        both = np.bincount(who, minlength=self.index.features)
        product = np.bincount(who, np.repeat(said, size) * self.values[at], self.index.features)
        both[feature] = 0
        some = np.flatnonzero(both)
        n, one, others = self.index.seen, self.sums[feature], self.sums[some]
        spread = (n * self.squares[feature] - one**2) * (n * self.squares[some] - others**2)
        with np.errstate(invalid="ignore", divide="ignore"):  # features that say the same at every token
            r = (n * product[some] - one * others) / np.sqrt(spread)
        best = np.argsort(-np.where(r > 0, r, 0), kind="stable")[: min(count, int((r > 0).sum()))]
        which, r = some[best], r[best]
        cosine = product[which] / np.sqrt(self.squares[feature] * self.squares[which])
        return list(zip(which.tolist(), r.tolist(), cosine.tolist(), both[which].tolist(), strict=True))


@contextlib.contextmanager
def by_token(index: Index) -> Iterator[ByToken]:
    """Turn the index round in a temporary file: 8 bytes a nonzero on disk, 8 bytes a token in memory."""
    sizes = np.zeros(index.tokens.size + 1, np.int64)
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as other:
        features = np.memmap(one, np.uint32, "w+", shape=(index.nonzeros,)).view(np.ndarray)
        values = np.memmap(other, np.float32, "w+", shape=(index.nonzeros,)).view(np.ndarray)
        for a in range(0, index.nonzeros, 1 << 20):
            sizes += np.bincount(index.places[a : a + (1 << 20)].astype(np.int64) + 1, minlength=len(sizes))
        ends = np.cumsum(sizes)
        cursor, sums, squares = ends[:-1].copy(), np.zeros(index.features), np.zeros(index.features)
        for feature in np.flatnonzero(index.counts):
            places, said = index.of(int(feature))
            at = cursor[places]
            features[at], values[at] = feature, said
            cursor[places] += 1
            wide = said.astype(np.float64)
            sums[feature], squares[feature] = wide.sum(), wide @ wide
        yield ByToken(index, ends, features, values, sums, squares)
