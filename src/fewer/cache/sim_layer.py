"""SimLayerKV: layers that look at the ends alone remember the ends alone."""

from collections.abc import Sequence

from fewer.cache import Allocator, Counts, Past, Score
from fewer.cache._plan import room
from fewer.core import Paper, method

TITLE = "SimLayerKV: A Simple Framework for Layer-Level KV Cache Reduction"


@method(Paper("2410.13846", TITLE, 2024))
class SimLayer(Allocator):
    """Let lazy layers keep `sinks` + `recent` tokens, the others what that saves; lazy is who pays the ends more than `lazy` of its attention.

    Used with `cache/streaming_llm`. `shares` are each layer's, found by `fit` from what layers have cached: of the newest query, the mean
    over heads.

    Differs from the paper: the others keep all that a budget allows, not all; what they cannot take goes back. Layers are judged once, on a text
    given to `fit`, not at each prompt. Without `shares` all layers are alike.

    Of 3 x 6 slots the lazy first layer keeps 1 + 2.

    >>> sim, score = SimLayer((0.95, 0.3, 0.5), sinks=1, recent=2), torch.zeros(1, 1, 20)
    >>> [sim.allocate(score, torch.tensor([[6]]), layer, 3).item() for layer in range(3)]
    [3, 7, 7]
    """

    shares: tuple[float, ...] = ()
    lazy: float = 0.9
    sinks: int = 4
    recent: int = 1024

    def fit(self, layers: Sequence[Past]) -> "SimLayer":
        """With the shares of these, one past for each layer."""
        return type(self)(tuple(map(self._share, layers)), self.lazy, self.sinks, self.recent)

    def _share(self, past: Past) -> float:
        read = past.grouped(past.attention())[..., -1, :].mean(2)
        ends = past.real & ((past.rank < self.sinks) | (past.rank >= past.real.sum(-1, keepdim=True) - self.recent))
        return (read * ends).sum(-1).mean().item()

    def allocate(self, score: Score, counts: Counts, layer: int, layers: int) -> Counts:
        there = room(score)
        counts = counts.minimum(there)
        if self.shares and len(self.shares) != layers:
            raise ValueError(f"{self.name}: shares of {len(self.shares)} layers; the model has {layers}")
        s = sum(x > self.lazy for x in self.shares)
        f = layers - s
        if not s or not f:
            return counts
        total = layers * counts
        few = counts.clamp(max=self.sinks + self.recent).maximum((total - f * there) // s)
        return few if self.shares[layer] > self.lazy else ((total - s * few) // f).minimum(there)
