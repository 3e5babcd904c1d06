"""CATS: a hidden neuron matters as much as its gate opens."""

from fewer.activations import HIDDEN, ByReach
from fewer.calibrate import Stats
from fewer.core import Paper, method


@method(
    Paper(
        "2404.08763",
        "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models",
        2024,
        ledger=373,
        equation="eq. 3",
    )
)
class Cats(ByReach):
    """Compute the hidden neurons with the largest |act(gate(x))_i|.

    Differs from the paper: each token keeps its own largest; a threshold for all tokens is what calibration makes of it.

    >>> Cats().score(torch.tensor([-0.2, 2.0]), observe((), torch.ones(2, 1), torch.ones(1, 1)))
    tensor([0.2000, 2.0000])
    """

    place = HIDDEN

    def reach(self, stats: Stats) -> None:
        return None
