"""CriticalKV: half by attention, half by what it would change in the output."""

import torch

from fewer.cache import Around, ByScore, Counts, Keep, Past, Score
from fewer.cache._scores import protect
from fewer.cache.snap_kv import SnapKv
from fewer.core import Paper, method
from fewer.kernels import top_k

TITLE = "Identify Critical KV Cache in LLM Inference from an Output Perturbation Perspective"


@method(Paper("2502.03805", TITLE, 2025, equation="Algorithm 1"))
class CriticalKv(Around, ByScore):
    """Keep `first` of the budget by another method's score, the rest by (score + `floor`) x |W_o v|_1.

    |W_o v|_1 is the mean over the group of the length of the value behind each head's output projection.

    Differs from the paper: where the projection is not known (`past.project`), |v|_1 stands for it; any method scores.

    Scores -1, -2, -3: the first stays by its score, the third by its value.

    >>> from fewer.cache.key_norm import KeyNorm
    >>> past = Past.of(torch.tensor([[[[1.0], [2.0], [3.0]]]]), torch.tensor([[[[1.0], [-1.0], [0.0]]]]))
    >>> CriticalKv(KeyNorm()).evict(past, torch.tensor([[2]])).int()
    tensor([[[1, 0, 1]]], dtype=torch.int32)
    """

    of: ByScore = SnapKv()
    floor: float = 1e-4
    first: float = 0.5

    def score(self, past: Past) -> Score:
        return (self.of.score(past) + self.floor) * self._weight(past)

    def evict(self, past: Past, counts: Counts) -> Keep:
        there = past.real.sum(-1)
        score = self.of.score(past).masked_fill(~past.real, -torch.inf)
        begun = top_k(score, (counts * self.first).long().clamp(min=1).minimum(there))
        second = ((score + self.floor) * self._weight(past)).masked_fill(~past.real, -torch.inf)
        return top_k(protect(past, begun, second), counts.minimum(there))

    def _weight(self, past: Past) -> Score:
        if past.project is None:
            return past.v.float().abs().sum(-1)
        v = past.v.float()[:, :, None]
        out = v @ past.project.float().unflatten(0, (v.shape[1], -1))
        return out.abs().sum(-1).mean(2)
