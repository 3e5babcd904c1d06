"""HierarchicalTopK: one dictionary for every k up to its own."""

from collections.abc import Iterator

import torch

from fewer.core import Paper, method
from fewer.features import ByScore, Codes


@method(
    Paper(
        "2505.24473",
        "Train One Sparse Autoencoder Across Multiple Sparsity Budgets to Preserve Interpretability and Accuracy",
        2025,
        ledger=496,
    )
)
class HierarchicalTopK(ByScore):
    """TopK, whose j loudest latents must explain the input for every j up to k: the mean of their errors (eq. 6).

    One model serves at any smaller k: `replace(dictionary, budget=budget("8"))`.

    >>> codes = Codes(torch.tensor([[4, 2]]), torch.tensor([[1.0, 3.0]]), 5)
    >>> [(weight, part.dense().tolist()) for weight, part in HierarchicalTopK().views(codes)]
    [(0.5, [[0.0, 0.0, 3.0, 0.0, 0.0]]), (0.5, [[0.0, 0.0, 3.0, 0.0, 1.0]])]
    """

    def views(self, codes: Codes) -> Iterator[tuple[float, Codes]]:
        order = codes.value.detach().argsort(dim=-1, descending=True, stable=True)
        index, value = codes.index.gather(-1, order), codes.value.gather(-1, order)
        k = value.shape[-1]
        for j in range(1, k + 1):
            yield 1 / k, Codes(index[..., :j].contiguous(), value[..., :j], codes.size)
        if not k:
            yield 1.0, Codes(index, torch.zeros_like(value), codes.size)
