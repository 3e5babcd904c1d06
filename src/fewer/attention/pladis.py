"""PLADIS: away from dense attention, along what entmax changes."""

from fewer.attention import ByRow, May, Parts, RowScore
from fewer.core import Paper, method
from fewer.select import entmax, entmax15

TITLE = "PLADIS: Pushing the Limits of Attention in Diffusion Models at Inference Time by Leveraging Sparsity"


@method(Paper("2503.07677", TITLE, 2025, ledger=217))
class Pladis(ByRow):
    """Weigh by softmax + strength (entmax - softmax): beyond entmax where `strength` is above 1, without any training.

    The values are weighed once, as sums of values are linear in the weights: 0 is the model itself, 1 alpha-entmax.

    Differs from the paper: acts in any attention; the paper does it in the cross-attention of diffusion models alone.

    >>> score = torch.tensor([[0.0, -2.0]])  # softmax 0.8808 and 0.1192, entmax 1 and 0
    >>> Pladis().weigh(score, torch.ones(1, 2).bool(), {})
    tensor([[ 1.1192, -0.1192]])
    """

    strength: float = 2.0  # the paper's lambda
    alpha: float = 1.5

    def weigh(self, score: RowScore, may: May, parts: Parts) -> RowScore:
        dense = score.softmax(-1)
        sparse = entmax15(score) if self.alpha == 1.5 else entmax(score, self.alpha)
        return dense + self.strength * (sparse - dense)
