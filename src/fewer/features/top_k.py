"""TopK: the k largest pre-activations of each input."""

from fewer.core import Paper, method
from fewer.features import ByScore


@method(Paper("2406.04093", "Scaling and evaluating sparse autoencoders", 2024, ledger=23))
class TopK(ByScore):
    """Keep the k largest pre-activations of each input, z = TopK(W_enc (x - b) + b_enc) (eq. 2); negative ones say nothing.

    The selection is that of k-Sparse Autoencoders (Makhzani and Frey 2013, 1312.5663, ledger 359).

    Differs from the paper: it has no bias b_enc of the encoder.

    >>> TopK().code(torch.tensor([[3.0, 2.0, -1.0], [1.0, -4.0, -5.0]]), budget("2"))
    tensor([[3., 2., 0.],
            [1., 0., 0.]])
    """
