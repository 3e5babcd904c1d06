"""How many bits a dictionary needs to say its data to a given exactness."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.layout import Codes

from .estimate import Score, jackknife


def description_length(
    codes: Codes, x: Float[Tensor, "n dim"], x_hat: Float[Tensor, "n dim"], exact: float, step: float
) -> Score:
    """Bits a token to say `x` within a mean square of `exact` a number: the codes, and what they leave over. Lower is better.

    codes: sum over latents of the entropy of round(z_i / step), silence included (independent latents, each with its own
    ideal code); the rest: sum over dimensions of 1/2 log2(var / exact) where the error's variance is larger (Gaussian
    rate distortion). Ayonrinde et al. 2024 (2410.11179), sec. 3.

    Differs from the paper: theirs searches the coarsest step that leaves the error as it is and stops there; here the
    residual is paid for, so that dictionaries of any error compare at one exactness. The cost of the dictionary itself is
    not counted. Jackknife over rows. Entropies of few rows are too small: give many rows a latent.
    """
    if not exact > 0 or not step > 0:
        raise ValueError(f"exact={exact}, step={step}: both must be above 0")
    level = (codes.value.double() / step).round().long()
    error = (x.double() - x_hat.double()).square()

    def bits(rows: Tensor) -> float:
        here = rows.to(level.device)
        return entropy(codes.index[here], level[here], codes.size) + _rest(error[here], exact)

    return Score("bits", jackknife(bits, len(x)), higher_is_better=False)


def entropy(index: Tensor, level: Tensor, latents: int) -> float:
    """Bits a row of all latents' levels, each latent coded by itself; whoever is not in a row's `index` is silent.

    >>> entropy(torch.tensor([[0], [0], [1], [1]]), torch.ones(4, 1, dtype=torch.long), 2)  # two coins
    2.0
    """
    n, on = len(index), level != 0
    if not on.any():
        return 0.0
    low, high = int(level.min()), int(level.max())
    kinds, count = ((index * (high - low + 1)) + level - low)[on].unique(return_counts=True)
    who = kinds // (high - low + 1)
    spoke = torch.zeros(latents, dtype=torch.float64, device=index.device).index_add_(0, who, count.double())
    silent = n - spoke
    p = torch.cat([count.double(), silent[silent > 0]]) / n
    return -(p * p.log2()).sum().item()


def _rest(error: Tensor, exact: float) -> float:
    return (0.5 * (error.mean(0) / exact).clamp(min=1).log2()).sum().item()


def coarsest(codes: Codes, decoder: Float[Tensor, "latents dim"], exact: float) -> float:
    """The step at which rounding the codes costs a mean square of `exact` / 4 a number, so that most of it is left to them.

    Uniform rounding errs by step^2 / 12 for each that speaks: step = sqrt(3 exact dim / mean sum |d_i|^2).
    """
    size = decoder.double().square().sum(1)[codes.index] * (codes.value != 0)
    return math.sqrt(3 * exact * decoder.shape[1] / size.sum(1).mean().clamp(min=1e-30).item())
