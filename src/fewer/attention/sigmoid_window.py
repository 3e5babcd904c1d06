"""SWAT: a window of keys, each weighed by itself."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import May, Mixer, Out, Reading, RowScore, by_rows
from fewer.core import Budget, Paper, method

TITLE = "Sliding Window Attention Training for Efficient Large Language Models"


@method(Paper("2502.18845", TITLE, 2025, ledger=219))
class SigmoidWindow(Mixer):
    """Weigh the last keys, as many as the budget says, by sigmoid(score + slope * distance): none takes from another.

    Slopes are balanced: of h heads the first half has -2^-k for k = 1 ... h/2 and looks at what is near, the second half 2^-k and
    looks back. Nothing is normalised, so there is no sink to look at. What a layer sees of the text beyond the window it
    has from the layers below.

    A model that was trained with softmax must be trained on. The window is what is read; `cache/streaming_llm(sinks=0)` forgets the rest.

    >>> SigmoidWindow().slopes(4)
    tensor([-0.5000, -0.2500,  0.5000,  0.2500])
    """

    chooses = True

    def slopes(self, heads: int) -> Float[Tensor, " heads"]:
        k = torch.arange(1, heads // 2 + 1)
        odd = [torch.zeros(heads % 2)]  # one head that no other balances has no slope
        return torch.cat([-(2.0**-k), 2.0**-k, *odd])

    def mix(self, r: Reading, budget: Budget) -> Out:
        slope = self.slopes(r.q.shape[1]).to(r.q.device).view(1, r.k.shape[1], -1, 1, 1)

        def weigh(score: RowScore, may: May, some: slice) -> RowScore:
            apart = r.apart(some)
            return (score + slope * apart).sigmoid() * (apart < r.counts(budget, some))

        return by_rows(replace(r, sinks=None), weigh).to(r.q.dtype)  # a sink would take nothing
