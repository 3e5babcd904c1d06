"""What sparsifiers share that rank a whole batch: the budget of a batch, and the threshold that stands for it later."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import Budget
from fewer.select import masked, select

from ._protocol import Keep, Own, Pre


def of_batch(pre: Pre, budget: Budget) -> Keep:
    """k latents a row on average: the largest of the whole batch."""
    return select(pre, replace(budget, scope="tensor", keep=budget.of(pre.shape[-1]) * len(pre)))


def fitted(pre: Pre, budget: Budget) -> dict[str, Tensor]:
    """The largest value that the batch leaves out: above it lie k a row."""
    return {"threshold": pre.relu()[~of_batch(pre, budget)].amax()}


def above(pre: Pre, own: Own) -> Pre:
    """What is above the threshold, each latent by itself."""
    return masked(pre, pre > own["threshold"])


PACE = 5.0  # how much faster than other tensors the logarithm of a weight moves


def weight_of(own: Own) -> Tensor:
    """The weight of a penalty that is learnt, without a gradient."""
    return (PACE * own["log_weight"].detach()).exp()


def pressure(own: Own, l0: Float[Tensor, ""], k: int) -> Float[Tensor, ""]:
    """A term whose value is 0 and whose gradient makes the weight rise while more than k latents speak, and fall while fewer do.

    Gradient ascent on the Lagrangian's multiplier: the weight of a penalty need not be known beforehand to meet a budget.
    """
    return -(own["log_weight"] - own["log_weight"].detach()) * (l0.detach() / k - 1)


def start(weight: float) -> dict[str, Tensor]:
    """A weight to begin with."""
    return {"log_weight": torch.tensor(weight).log() / PACE}
