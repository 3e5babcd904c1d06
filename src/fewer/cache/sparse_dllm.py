"""SparseDllm: what a block that is being written reads, before and behind it."""

from dataclasses import replace

import torch
from torch.nn.functional import max_pool1d

from fewer.cache import ByScore, Past, Score
from fewer.core import Paper, method


@method(Paper("2508.02558", "Sparse-dLLM: Accelerating Diffusion LLMs with Dynamic Cache Eviction", 2025, ledger=503))
class SparseDllm(ByScore):
    """Keep what the latest `window` queries, a diffusion model's block, read most, the maximum over `kernel` neighbours.

    The queries read tokens before and behind them alike.

    Differs from the paper: the block's own tokens compete with the others; softmax, not raw products, and a mean over the group.

    Alike tokens are read 1/3 each, the one in front too.

    >>> SparseDllm().score(Past.of(torch.zeros(1, 1, 3, 1))).round(decimals=2)
    tensor([[[0.3300, 0.3300, 0.3300]]])
    """

    window: int = 32
    kernel: int = 3

    def score(self, past: Past) -> Score:
        all_read = replace(past, at=torch.where(past.real, 0, -1).int())
        read = past.grouped(all_read.attention()).mean((2, 3))
        return max_pool1d(read, self.kernel, 1, self.kernel // 2)
