"""AbsTopK: the k largest by size, of either sign."""

from torch import Tensor

from fewer.core import Paper, method
from fewer.features import ByScore


@method(Paper("2510.00404", "AbsTopK: Rethinking Sparse Autoencoders For Bidirectional Features", 2025, ledger=430))
class AbsTopK(ByScore):
    """Keep the k pre-activations of the largest size, with their signs: one latent says a concept and its opposite.

    >>> AbsTopK().code(torch.tensor([[3.0, 2.0, -1.0], [1.0, -4.0, -5.0]]), budget("1"))
    tensor([[ 3.,  0.,  0.],
            [ 0.,  0., -5.]])
    """

    by_size = True

    def amount(self, pre: Tensor) -> Tensor:
        return pre
