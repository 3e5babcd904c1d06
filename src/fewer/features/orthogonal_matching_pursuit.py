"""Orthogonal matching pursuit as an encoder: take the best atom, fit all taken anew, look again."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper, method
from fewer.features import ByPursuit
from fewer.layout import Codes


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
        index = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
        with torch.no_grad():
            rest = x
            for _ in range(k):
                match = (rest @ atoms.mT).abs().scatter(1, index, -1.0)
                index = torch.cat([index, match.argmax(1, keepdim=True)], 1)
                rest = x - (_fit(x, atoms[index])[:, None] @ atoms[index])[:, 0]
        return Codes(index, _fit(x, atoms[index]), len(atoms))


def _fit(x: Float[Tensor, "batch dim"], chosen: Float[Tensor, "batch k dim"]) -> Float[Tensor, "batch k"]:
    with torch.autocast(x.device.type, enabled=False):  # nearly equal atoms want all digits
        gram = chosen @ chosen.mT + 1e-6 * torch.eye(chosen.shape[1], dtype=x.dtype, device=x.device)
        return torch.linalg.solve(gram, (chosen @ x[..., None].to(chosen.dtype)))[..., 0]
