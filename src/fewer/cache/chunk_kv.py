"""ChunkKV: what stands together stays together."""

import torch
from torch.nn.functional import pad

from fewer.cache import Around, ByScore, Past, Score
from fewer.cache.snap_kv import SnapKv
from fewer.core import Paper, method

TITLE = "ChunkKV: Semantic-Preserving KV Cache Compression for Efficient Long-Context LLM Inference"


@method(Paper("2502.00299", TITLE, 2025))
class ChunkKv(Around, ByScore):
    """Keep whole chunks of `chunk` tokens, those with the highest mean score of another method, the same in all heads.

    The budget is met exactly: of the last chunk that has a place, the best tokens stay.

    Differs from the paper: any method scores; the paper's reuse of one layer's choice in the next is not here. kvpress
    counts chunks and so may keep a chunk less.

    Means 2.5 and 1: the first chunk is better, and its second token.

    >>> from fewer.cache.key_norm import KeyNorm
    >>> past = Past.of(torch.tensor([[[[-4.0], [1.0], [1.5], [1.0]]]]))
    >>> ChunkKv(KeyNorm(), chunk=2).evict(past, torch.tensor([[3]])).int()
    tensor([[[0, 1, 1, 1]]], dtype=torch.int32)
    """

    of: ByScore = SnapKv()
    chunk: int = 20

    def score(self, past: Past) -> Score:
        token = self.of.score(past).masked_fill(~past.real, 0.0)
        n, size = past.at.shape[-1], self.chunk
        there = pad(past.real.sum(1), (0, -n % size)).unflatten(-1, (-1, size)).sum(-1)
        total = pad(token.sum(1), (0, -n % size)).unflatten(-1, (-1, size)).sum(-1)
        mean = (total / there.clamp(min=1)).masked_fill(there == 0, -torch.inf)
        place = (-mean).argsort(dim=-1, stable=True).argsort(-1)  # 0 is the best chunk; of equals the earlier
        inside = pad(token.masked_fill(~past.real, -torch.inf), (0, -n % size), value=-torch.inf)
        inside = (-inside.unflatten(-1, (-1, size))).argsort(dim=-1, stable=True).argsort(-1)
        return -(place[:, None, :, None] * size + inside).flatten(-2)[..., :n].float()
