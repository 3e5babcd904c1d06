"""What a steering vector is made of, in a dictionary's directions, with either sign."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer.features import Dictionary


@dataclass(frozen=True, eq=False)
class Parts:
    """vector = sum of amount times direction + rest; `cosine` is that of the sum with the vector."""

    latents: tuple[int, ...]
    amounts: tuple[float, ...]
    cosine: float


def pursue(
    vector: Float[Tensor, " dim"], atoms: Float[Tensor, "latents dim"], count: int, signed: bool = True
) -> Parts:
    """The vector as `count` of the atoms, by orthogonal matching pursuit: the atom nearest to what is left, then all amounts anew.

    A ReLU encoder cannot say a negative amount, and steering vectors, being differences of means, often need one
    (Mayne et al. 2024, 2411.08790): `signed` may. Without it, amounts are at least 0 (non-negative least squares).
    It ends early where no atom tells more of what is left.

    >>> p = pursue(torch.tensor([3.0, -2.0, 0.0]), torch.eye(3), 2)
    >>> p.latents, p.amounts, round(p.cosine, 4)
    ((0, 1), (3.0, -2.0), 1.0)
    >>> pursue(torch.tensor([3.0, -2.0, 0.0]), torch.eye(3), 2, signed=False).latents
    (0,)
    """
    if not 1 <= count <= len(atoms):
        raise ValueError(f"count={count}: expected 1 to the {len(atoms)} atoms there are")
    x, a = vector.double(), atoms.double()
    one = F.normalize(a, dim=-1)
    chosen: list[int] = []
    amounts, left = x.new_zeros(0), x
    for _ in range(count):
        near = one @ left
        near = near.abs() if signed else near
        near[chosen] = -torch.inf
        best = int(near.argmax())
        if near[best] <= 1e-9 * x.norm():
            break
        chosen.append(best)
        amounts = _fitted(x, a[chosen], signed)
        left = x - amounts @ a[chosen]
    real = [(i, v) for i, v in zip(chosen, amounts.tolist(), strict=True) if v != 0]
    said = x - left
    return Parts(tuple(i for i, _ in real), tuple(v for _, v in real), float(F.cosine_similarity(said, x, dim=0)))


def _fitted(x: Tensor, a: Tensor, signed: bool) -> Tensor:
    if signed:
        return torch.linalg.lstsq(a.T, x[:, None]).solution[:, 0]
    from scipy.optimize import nnls

    return torch.from_numpy(nnls(a.T.cpu().numpy(), x.cpu().numpy())[0]).to(x)


@dataclass(frozen=True, eq=False)
class Misfit:
    """Why an encoder cannot be trusted with a vector that is no activation (Mayne et al. 2024)."""

    size: float  # the vector's length by the activations' mean length; far from 1 is out of what the encoder learnt
    negative: float  # the share of directions whose projection on the vector, about the decoder's bias, is below 0
    cosine: float  # of what the dictionary makes of the vector with the vector


def misfit(dictionary: Dictionary, vector: Float[Tensor, " dim"], activations: Float[Tensor, "tokens dim"]) -> Misfit:
    """The three measures of how little a dictionary is made for a steering vector."""
    made = dictionary(vector[None].to(dictionary.encoder.dtype))[0]
    along = F.normalize(dictionary.decoder, dim=-1) @ vector.to(dictionary.decoder.dtype)
    return Misfit(
        float(vector.norm() / activations.norm(dim=-1).mean()),
        float((along < 0).float().mean()),
        float(F.cosine_similarity(made, vector.to(made.dtype), dim=0)),
    )
