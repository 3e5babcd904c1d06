"""Gradient pursuit as an encoder: take the best atom, move all taken down the gradient, look again."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper, method
from fewer.features import ByPursuit
from fewer.layout import Codes


@method(Paper("10.1109/TSP.2007.916124", "Gradient Pursuits", 2008))
class GradientPursuit(ByPursuit):
    """Add the atom that has most in common with what is left, then move all taken along the gradient by the best length.

    With g = D_S r, z_S += a g and a = <r, g D_S> / |g D_S|^2: between matching and orthogonal pursuit in cost and in fit. Used
    on the decoders of sparse autoencoders by Engels et al. 2024 (2410.14670). Values have either sign.

    Differs from the paper: the steps are unrolled, and atoms are learnt through them.

    >>> m, atoms = GradientPursuit(), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> m.code(torch.zeros(1, 2), budget("2"), m.look(torch.tensor([[3.0, 4.0]]), atoms))
    tensor([[3., 4.]])
    """

    def pursue(self, x: Float[Tensor, "batch dim"], atoms: Float[Tensor, "latents dim"], k: int) -> Codes:
        index = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
        value, rest = x.new_zeros(len(x), 0), x
        for _ in range(k):
            with torch.no_grad():
                match = (rest @ atoms.mT).abs().scatter(1, index, -1.0)
                index = torch.cat([index, match.argmax(1, keepdim=True)], 1)
            chosen = atoms[index]
            slope = (chosen @ rest[..., None])[..., 0]
            way = (slope[:, None] @ chosen)[:, 0]
            length = (rest * way).sum(1) / way.square().sum(1).clamp(min=1e-12)
            value = torch.cat([value, value.new_zeros(len(x), 1)], 1) + length[:, None] * slope
            rest = rest - length[:, None] * way
        return Codes(index, value, len(atoms))
