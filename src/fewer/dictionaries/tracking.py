"""What becomes of features: from one checkpoint or seed to another, and from one layer to a later one."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def drift(dictionaries: list[Float[Tensor, "latents dim"]]) -> Float[Tensor, "checkpoints latents"]:
    """The cosine of each latent's direction at every checkpoint with its direction at the last; decoders, each begun from the one before
    (Xu et al. 2024, SAE-Track, 2412.17626).

    >>> drift([torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])])
    tensor([[0.6000],
            [1.0000]])
    """
    sizes = {d.shape for d in dictionaries}
    if len(sizes) != 1:
        raise ValueError(
            f"decoders of {sorted(map(tuple, sizes))}: expected one shape, of dictionaries begun from one another"
        )
    return torch.stack([F.cosine_similarity(d, dictionaries[-1]) for d in dictionaries])


def formation(speaking: Float[Tensor, "some dim"], others: Float[Tensor, "many dim"]) -> float:
    """How much of a feature there is at a checkpoint: the mean cosine of two of the activations at tokens where the finished
    feature speaks, less that of two tokens by chance (Xu et al. 2024). 0 is nothing; each token is compared with others only.

    >>> formation(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    1.0
    """
    return _alike(speaking) - _alike(others)


def _alike(x: Tensor) -> float:
    if len(x) < 2:
        raise ValueError(f"{len(x)} activations: two at least are compared")
    one = F.normalize(x.double(), dim=-1)
    n = len(x)
    return float((one.sum(0).square().sum() - one.square().sum()) / (n * (n - 1)))


@dataclass(frozen=True, eq=False)
class Transport:
    """A linear map from an early site to a later one: what it tells of a direction there was carried, the rest was made on the way
    (activation transport operators: Szablewski and Masiak 2025, 2508.17540, ledger 413).
    """

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"]

    @classmethod
    def fit(
        cls, early: Float[Tensor, "tokens in"], late: Float[Tensor, "tokens out"], ridge: float = 1e-3
    ) -> "Transport":
        """Least squares about the means, with `ridge` times the mean variance of the early site on the diagonal; in float64."""
        x, y = early.double(), late.double()
        a, b = x - x.mean(0), y - y.mean(0)
        gram = a.T @ a
        gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        weight = torch.linalg.solve(gram, a.T @ b).T
        return cls(weight, y.mean(0) - weight @ x.mean(0))

    def explained(
        self,
        early: Float[Tensor, "tokens in"],
        late: Float[Tensor, "tokens out"],
        directions: Float[Tensor, "latents out"],
    ) -> Float[Tensor, " latents"]:
        """The share of the variance along each direction (rows of a later decoder) that the map tells: R^2, best on tokens it was not fitted to.

        1 is carried, 0 or less is made on the way.
        """
        w = directions.double()
        truth = late.double() @ w.T
        missed = truth - (early.double() @ self.weight.T + self.bias) @ w.T
        return 1 - missed.square().sum(0) / (truth - truth.mean(0)).square().sum(0).clamp(min=1e-30)
