"""DEFT: hidden neurons pay for being on, as far as that can be differentiated."""

import torch
from jaxtyping import Float

from fewer.activations import Hidden, Pressed
from fewer.core import Paper, method


@method(
    Paper(
        "2402.01911",
        "From PEFT to DEFT: Parameter Efficient Finetuning for Reducing Activation Density in Transformers",
        2024,
        ledger=378,
        equation="section 3",
    )
)
class Deft(Pressed):
    """Learn with a price on the density of hidden neurons, |h| counted as tanh(beta |h|): weight * mean tanh(beta |h|) of each MLP.

    `fewer train activations/deft 100% -o model` teaches a model; `activations/deft 30%` is then a step on it.

    Differs from the paper: all weights of the model learn, not adapters beside frozen ones; a constant beta.

    >>> Deft(weight=2.0, beta=100.0).penalty(torch.tensor([[0.0, -3.0], [0.0, 0.0]]), 0.0)  # a quarter is on
    tensor(0.5000)
    """

    weight: float = 0.1
    beta: float = 20.0

    def penalty(self, h: Hidden, progress: float) -> Float[torch.Tensor, ""]:
        return self.weight * (self.beta * h.abs().float()).tanh().mean()
