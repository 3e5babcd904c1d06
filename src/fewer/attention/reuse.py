"""Reuse: choose in some layers and steps, and read the same again in between."""

from fewer.attention import ByScore, Digest, Key, Query, Score
from fewer.core import Paper, method

from ._named import named

TITLE = "TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention"


@method(Paper("2410.05076", TITLE, 2024, ledger=199))
class Reuse(ByScore):
    """Choose as `pattern` does in the layers `layers` at every `every`-th step; elsewhere read what was chosen last.

    "Last" is the nearest layer before that looks, at this step or the last one that looked. Without `layers`, every layer looks.
    `rows` and `block` are its own, whatever the pattern's are.

    Differs from the paper: the layers before the first that looks are to be left dense by the step's place; the choice is by
    `pattern` and not by full attention.

    >>> m = Reuse("quest", layers=(2, 8), every=4)
    >>> [m.looks(layer, 0) for layer in (1, 2, 3, 8)], [m.looks(2, step) for step in (0, 1, 4)]
    ([False, True, False, True], [True, False, True])
    """

    phases = ("decode",)

    pattern: str = "quest"
    layers: tuple[int, ...] = ()
    every: int = 1
    rows: int = 1
    block: int = 16

    def looks(self, layer: int, step: int) -> bool:
        return (not self.layers or layer in self.layers) and step % self.every == 0

    def digest(self, k: Key) -> Digest:
        return self._pattern().digest(k)

    def score(self, q: Query, digest: Digest) -> Score:
        return self._pattern().score(q, digest)

    def _pattern(self) -> ByScore:
        m = named(self.pattern, self.rows, self.block)
        if not isinstance(m, ByScore):
            raise ValueError(f"{self.pattern!r} remembers nothing of keys; reuse takes one that does, as 'quest' does")
        return m
