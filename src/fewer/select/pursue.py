"""Which atoms of a dictionary spell a vector: orthogonal matching pursuit."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def pursue(
    x: Float[Tensor, "batch dim"], atoms: Float[Tensor, "size dim"], k: int
) -> tuple[Int64[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    """Add the atom that has most in common with what is left, of either sign, then fit all that were taken: k times.

    The fit at the end is differentiated, and the choice has no gradient. A ridge of 1e-6 stands by where two chosen atoms are nearly the
    same. Atoms have length one.

    >>> atoms = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.8, 0.6]])
    >>> index, value = pursue(torch.tensor([[4.0, 3.0]]), atoms, 1)
    >>> index.tolist(), value.round().tolist()
    ([[2]], [[5.0]])
    """
    index = torch.empty(len(x), 0, dtype=torch.long, device=x.device)
    with torch.no_grad():
        rest = x
        for step in range(k):
            match = (rest @ atoms.mT).abs().scatter(1, index, -1.0)
            index = torch.cat([index, match.argmax(1, keepdim=True)], 1)
            if step < k - 1:
                rest = x - (_fit(x, atoms[index])[:, None] @ atoms[index])[:, 0]
    return index, _fit(x, atoms[index])


def _fit(x: Float[Tensor, "batch dim"], chosen: Float[Tensor, "batch k dim"]) -> Float[Tensor, "batch k"]:
    with torch.autocast(x.device.type, enabled=False):  # nearly equal atoms want all digits
        gram = chosen @ chosen.mT + 1e-6 * torch.eye(chosen.shape[1], dtype=x.dtype, device=x.device)
        return torch.linalg.solve(gram, (chosen @ x[..., None].to(chosen.dtype)))[..., 0]
