"""Compactor: leverage and attention that looks both ways, blended."""

from dataclasses import replace

import torch

from fewer.cache import ByScore, Past, Score
from fewer.cache._protocol import kept
from fewer.cache._scores import protect, standard
from fewer.cache.leverage import leverage
from fewer.cache.non_causal_attention import chunked
from fewer.core import Paper, method

TITLE = "Compactor: Calibrated Query-Agnostic KV Cache Compression with Approximate Leverage Scores"


@method(Paper("2507.08143", TITLE, 2025))
class Compactor(ByScore):
    """Keep the ends, and between them what is high in `blend` x leverage + non-causal attention, each made even.

    The first `sinks` and the last `tail` tokens stay and take no part in either score; see `cache/leverage` and
    `cache/non_causal_attention`.

    Differs from the paper: kvpress' form; the blend does not follow the share that is forgotten, as kvpress' default does.

    Alike tokens: only the ends stand out, the newest first.

    >>> past = Past.of(torch.zeros(1, 1, 4, 1), torch.ones(1, 1, 4, 1))
    >>> Compactor(sinks=1, tail=1).evict(past, torch.tensor([[2]])).int()
    tensor([[[1, 0, 0, 1]]], dtype=torch.int32)
    """

    window = 0
    sinks: int = 8
    tail: int = 4
    chunk: int = 256
    sketch: int = 48
    ridge: float = 0.01
    blend: float = 0.35
    seed: int = 0

    def score(self, past: Past) -> Score:
        past = past.text
        ends = past.real & ((past.rank < self.sinks) | (past.rank >= past.real.sum(-1, keepdim=True) - self.tail))
        inner = kept(past, ~ends)
        if not inner.real.any():
            return protect(past, ends, past.at.float())
        alone = standard(inner, leverage(inner, self.sketch, self.ridge, self.seed))
        asked = (past.now >= self.sinks) & (past.now < past.seen[:, None] - self.tail)
        inner = replace(inner, now=torch.where(asked, past.now, -1))
        return protect(past, ends, self.blend * alone + chunked(inner, self.chunk, self.sinks))
