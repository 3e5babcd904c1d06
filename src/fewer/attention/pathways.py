"""Subsampled attention: in training each step reads a random part of the past, of which most is near."""

from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from fewer.attention import ByPlace, Score, apart
from fewer.core import Paper, method

from ._drawn import drawn

TITLE = "The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles"


@method(Paper("2306.01705", TITLE, 2023, ledger=385))
class Pathways(ByPlace):
    """Read, in training, blocks drawn anew at each step, a nearer one more likely: weights fall as (1 + apart / reach)^-bias.

    Drawn without replacement in proportion to these weights (the highest of log u / weight), the same for all heads of a group;
    `bias=0` draws all alike. At inference everything is read: the step is for training alone (`@ train`, its own place). A model
    that learns so is a self-ensemble of its sub-models, which the paper also averages; that is not here.

    Differs from the paper: it draws a permutation of the keys for all queries and slides a window over it, for speed; here each
    block of queries draws its own.

    >>> m = Pathways(rows=1, block=1)
    >>> m.attend(torch.zeros(1, 1, 6, 1), torch.zeros(1, 1, 6, 1), budget("3")).sum(-1)  # itself, and two
    tensor([[[1, 2, 3, 3, 3, 3]]])
    """

    phases = ("train",)
    steady = True

    bias: float = 1.0
    reach: float = 4.0  # blocks
    seed: int = 0
    rows: int = 64
    block: int = 64

    def anew(self, step: int) -> "Pathways":
        return replace(self, seed=self.seed + step)

    def score_places(self, now: Int[Tensor, " q_blocks"], blocks: int, heads: int) -> Score:
        u = drawn(self.seed, now, blocks, heads).clamp(min=1e-9)
        weight = (1 + apart(now, blocks).clamp(min=0) / self.reach) ** -self.bias
        return u.log() / weight
