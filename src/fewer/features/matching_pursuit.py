"""Matching pursuit as an encoder: take the best atom, subtract it, look again."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper, method
from fewer.features import ByPursuit
from fewer.layout import Codes


@method(
    Paper(
        "2506.03093",
        "From Flat to Hierarchical: Extracting Sparse Representations with Matching Pursuit",
        2025,
        ledger=407,
    )
)
class MatchingPursuit(ByPursuit):
    """In each of k steps, add the atom that has most in common with what is left, and take it away: r -= <r, d> d.

    What is left never grows, so the number of steps may be another one afterwards. An atom that is taken twice counts once. If
    nothing positive is left to take, a row has fewer than k.

    >>> own = MatchingPursuit().look(torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
    >>> MatchingPursuit().code(torch.zeros(1, 3), budget("1"), own)
    tensor([[0., 5., 0.]])
    """

    def pursue(self, x: Float[Tensor, "batch dim"], atoms: Float[Tensor, "latents dim"], k: int) -> Codes:
        rest, index, value = x, [], []
        for _ in range(k):
            with torch.no_grad():
                best = (rest @ atoms.mT).argmax(1)
            atom = atoms[best]
            amount = (rest * atom).sum(1).relu()
            rest = rest - amount[:, None] * atom
            index.append(best)
            value.append(amount)
        return Codes(torch.stack(index, 1), torch.stack(value, 1), len(atoms))
