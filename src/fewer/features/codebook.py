"""Codebook features: which codes stand for a hidden state, each said once or not at all."""

from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper, method
from fewer.features import ByScore


@method(
    Paper(
        "2310.17230",
        "Codebook Features: Sparse and Discrete Interpretability for Neural Networks",
        2023,
        ledger=384,
    )
)
class Codebook(ByScore):
    """Keep the k codes that are nearest to the hidden state by cosine; each says 1, so that the sum of k codes is what is passed on.

    With rows of the encoder of length one and no bias, pre-activations are cosines times the state's length, which ranks codes
    alike: z_i = 1 where cos(a, c_i) is among the k largest (section 2). The gradient goes straight through: a code is 1, and
    moves as its pre-activation does. How codes are learnt with a model: `fewer.train.learn_codebooks`.

    >>> Codebook().code(torch.tensor([[0.9, 0.2, -0.5], [-0.1, -0.4, -0.2]]), budget("2"))
    tensor([[1., 1., 0.],
            [1., 0., 1.]])
    """

    def amount(self, pre: Float[Tensor, "batch k"]) -> Float[Tensor, "batch k"]:
        return 1 + (pre - pre.detach())
