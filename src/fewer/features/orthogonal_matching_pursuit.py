"""Orthogonal matching pursuit as an encoder: take the best atom, fit all taken anew, look again."""

from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper, method
from fewer.features import ByPursuit
from fewer.layout import Codes
from fewer.select import pursue


@method(
    Paper(
        "10.1109/ACSSC.1993.342465",
        "Orthogonal Matching Pursuit: Recursive Function Approximation with Applications to Wavelet Decomposition",
        1993,
    )
)
class OrthogonalMatchingPursuit(ByPursuit):
    """Add the atom that has most in common with what is left, of either sign, then fit all that were taken by least squares.

    No step need be unrolled: the fit at the end is differentiated, and the choice has no gradient.

    Differs from the paper: atoms are learnt through it. A ridge of 1e-6 stands by where two chosen atoms are nearly the same.

    >>> atoms = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> m = OrthogonalMatchingPursuit()
    >>> m.code(torch.zeros(1, 2), budget("2"), m.look(torch.tensor([[4.0, 4.0]]), atoms)).round(decimals=2)
    tensor([[1., 5.]])
    """

    def pursue(self, x: Float[Tensor, "batch dim"], atoms: Float[Tensor, "latents dim"], k: int) -> Codes:
        index, value = pursue(x, atoms, k)
        return Codes(index, value, len(atoms))
