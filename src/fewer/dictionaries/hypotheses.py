"""Which latents tell a target: few of them, and whether they hold on data they were not chosen on (Movva et al. 2025, 2502.04382)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """A latent that goes along with the target: the correlation where it was chosen, where it was not, and the chance of so much by accident.

    `holds`: it has the same sign on held-out data, and p, times the number of hypotheses (Bonferroni), is below .05.
    """

    latent: int
    chosen: float
    held_out: float
    p: float
    holds: bool


def by_correlation(z: Float[Tensor, "texts latents"], target: Float[Tensor, " texts"], count: int) -> list[int]:
    """The `count` latents with the largest correlation of either sign; a latent that never changes has none.

    >>> by_correlation(torch.tensor([[1.0, 0.0], [2.0, 5.0], [3.0, 0.0]]), torch.tensor([2.0, 4.0, 6.0]), 1)
    [0]
    """
    return _correlation(z, target).abs().argsort(descending=True, stable=True)[:count].tolist()


def by_lasso(
    z: Float[Tensor, "texts latents"], target: Float[Tensor, " texts"], count: int, sweeps: int = 200
) -> list[int]:
    """The first `count` latents that a lasso takes in as its penalty falls, on standardised latents: of two that say the same, one.

    min |y - Z w|^2 / 2n + a |w|_1, coordinate by coordinate, a from the least that keeps all out down by steps of 0.9.
    Largest first, by |w| at the end. Fewer, where no more of them tell anything.

    >>> z = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    >>> by_lasso(z, 2 * z[:, 0] + z[:, 2], 2)  # latent 1 says what latent 0 says
    [0, 2]
    """
    x, y = _standard(z), _standard(target[:, None])[:, 0]
    gram, heard = x.T @ x / len(x), x.T @ y / len(x)
    w, penalty = torch.zeros_like(heard), float(heard.abs().max())
    live = (gram.diagonal() > 0).nonzero()[:, 0].tolist()
    before = w
    while (w != 0).sum() < min(count, len(live)) and penalty > 1e-4:
        penalty, before = 0.9 * penalty, w.clone()
        for _ in range(sweeps):
            moved = 0.0
            for i in live:
                ask = float(heard[i] - gram[i] @ w + gram[i, i] * w[i])
                new = max(abs(ask) - penalty, 0.0) * (1 if ask > 0 else -1) / float(gram[i, i])
                moved, w[i] = max(moved, abs(new - float(w[i]))), new
            if moved < 1e-6:
                break
    found = w.abs().argsort(descending=True, stable=True)[: int((w != 0).sum())].tolist()
    first = [i for i in found if before[i] != 0]  # who came earlier stays, if the last step let in too many
    return sorted([*first, *(i for i in found if i not in first)][:count], key=found.index)


def verified(
    chosen: list[int],
    z: Float[Tensor, "texts latents"],
    target: Float[Tensor, " texts"],
    held_out: Bool[Tensor, " texts"],
) -> list[Hypothesis]:
    """Each chosen latent's correlation with the target where it was chosen and on `held_out`, with the two-sided p of Fisher's z."""
    if int(held_out.sum()) < 5:
        raise ValueError(f"{int(held_out.sum())} held-out texts: 5 at least are needed for a test")
    here, there = (_correlation(z[part][:, chosen], target[part]).tolist() for part in (~held_out, held_out))
    n, found = int(held_out.sum()), []
    for latent, a, b in zip(chosen, here, there, strict=True):
        score = torch.atanh(torch.tensor(min(abs(b), 1 - 1e-12), dtype=torch.float64)) * (n - 3) ** 0.5
        p = float(torch.special.erfc(score / 2**0.5))
        found.append(Hypothesis(latent, a, b, p, a * b > 0 and p * len(chosen) < 0.05))
    return found


def _standard(x: Tensor) -> Tensor:
    x = x.double() - x.double().mean(0)
    size = x.square().mean(0).sqrt()
    return torch.where(size > 1e-12, x / size.clamp(min=1e-12), 0.0)


def _correlation(z: Tensor, target: Tensor) -> Tensor:
    return _standard(z).T @ _standard(target[:, None])[:, 0] / len(z)
