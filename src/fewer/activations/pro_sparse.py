"""ProSparse: hidden neurons pay for their size, more and more."""

import math

import torch
from jaxtyping import Float

from fewer.activations import Hidden, Pressed
from fewer.core import Paper, method


@method(
    Paper(
        "2402.13516",
        "ProSparse: Introducing and Enhancing Intrinsic Activation Sparsity within Large Language Models",
        2024,
        ledger=369,
        equation="section 3",
    )
)
class ProSparse(Pressed):
    """Learn with an L1 price on hidden neurons whose factor climbs by stages along sines, from a constant first stage.

    The factor at the end of stage i of `stages` is peak / growth ** (stages - i). Within a later stage it goes from that of the one before
    to its own as (1 + sin(pi (t - 1/2))) / 2, t the share of the stage that is over. The price is factor * mean |h| of each MLP.

    `fewer train activations/pro_sparse 100% --activation relu -o model` puts ReLUs in and learns; then
    `activations/pro_sparse 30% + threshold` on it is the paper's shift of the threshold (FATReLU), fitted to a budget.

    Differs from the paper: stages are equally long and their factors a geometric row, where the paper sets both by hand; the
    mean over neurons, not their sum.

    >>> m = ProSparse(peak=0.4, stages=2, growth=2.0)
    >>> [round(m.factor(t), 3) for t in (0.0, 0.5, 0.75, 1.0)]
    [0.2, 0.2, 0.3, 0.4]
    >>> m.penalty(torch.tensor([[1.0, -3.0]]), 1.0)  # 0.4 * 2
    tensor(0.8000)
    """

    peak: float = 0.5
    stages: int = 3
    growth: float = 3.0

    def factor(self, progress: float) -> float:
        stage = min(int(progress * self.stages), self.stages - 1)
        end = self.peak / self.growth ** (self.stages - 1 - stage)
        start, t = end / self.growth if stage else end, progress * self.stages - stage
        return start + (end - start) * (1 + math.sin(math.pi * (t - 0.5))) / 2

    def penalty(self, h: Hidden, progress: float) -> Float[torch.Tensor, ""]:
        return self.factor(progress) * h.abs().float().mean()
