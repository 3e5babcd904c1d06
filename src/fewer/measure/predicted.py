"""How many of the neurons that a token needs a predictor names."""

from jaxtyping import Bool
from torch import Tensor

from .estimate import Score, mean


def set_recall(said: Bool[Tensor, "tokens neurons"], right: Bool[Tensor, "tokens neurons"]) -> Score:
    """The share of each token's true neurons that a predictor names, mean over tokens that have any. Higher is better.

    Of scores instead of sets, `recall_at` tells the same at any number of guesses. ValueError: no token has a neuron.

    >>> import torch
    >>> set_recall(torch.tensor([[True, True, False, False]]), torch.tensor([[True, False, True, False]])).value
    0.5
    """
    some = right.any(-1)
    if not some.any():
        raise ValueError("no token has a true neuron: there is nothing to find")
    each = (said & right)[some].sum(-1).double() / right[some].sum(-1)
    return Score("recall", mean(each), higher_is_better=True)
