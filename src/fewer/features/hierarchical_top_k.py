"""HierarchicalTopK: one dictionary for every k."""

import math

from fewer.core import Paper, method
from fewer.features import ByScore, Runs
from fewer.layout import Codes


@method(
    Paper(
        "2505.24473",
        "Train One Sparse Autoencoder Across Multiple Sparsity Budgets to Preserve Interpretability and Accuracy",
        2025,
        ledger=496,
    )
)
class HierarchicalTopK(ByScore):
    """Keep the k largest of each input, and let the j largest alone explain it too, for every j: the mean of k errors.

    Serve at any k: `dataclasses.replace(dictionary, budget=budget("8"))`. `levels` are shares of k, if only some of the j are
    to count; with few of them it is the nested TopK of Zaigrajew et al. 2025
    (2502.20578, ledger 77).

    >>> from fewer.layout import Codes
    >>> codes = Codes(torch.tensor([[0, 4]]), torch.tensor([[2.0, 3.0]]), 5)
    >>> [(w, part.index.tolist(), part.value.tolist()) for w, part in HierarchicalTopK().views(codes)]
    [(0.5, [[4]], [[3.0]]), (0.5, [[0]], [[2.0]])]
    """

    levels: tuple[float, ...] = ()

    def views(self, codes: Codes) -> Runs:
        k = codes.value.shape[1]
        ends = sorted({min(k, math.ceil(k * share)) for share in self.levels} | {k} if self.levels else range(1, k + 1))
        order = codes.value.detach().sort(dim=1, descending=True, stable=True).indices
        index, value = codes.index.gather(1, order), codes.value.gather(1, order)
        return Runs(Codes(index, value, codes.size), ends, [1 / len(ends)] * len(ends))
