"""The control for whole units: every other slimmer must beat it."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper, method
from fewer.weights import ByUnit, Coupled

TITLE = "Recovering from Random Pruning: On the Plasticity of Deep Convolutional Neural Networks"


@method(Paper("1801.10447", TITLE, 2018, equation="Section 3"))
class ChannelRandom(ByUnit):
    """Keep units at random, the same ones for the same seed and maps.

    Scores are uniform on [0, 1). The draw is seeded by `seed` and by the reader's first weights.

    Differs from the paper: no training follows.

    >>> from fewer.weights import Part
    >>> part = Part("down", torch.ones(1, 4), observe((), torch.ones(1, 4), torch.ones(1, 4)))
    >>> ChannelRandom().slim(Coupled(4, (), part), 3)[0].sum()
    tensor(3)
    """

    seed: int = 0

    def score(self, group: Coupled) -> Float[Tensor, " units"]:
        w = group.reader.weight
        make = torch.Generator().manual_seed(hash((self.seed, *w.flatten()[:64].tolist())))
        return torch.rand(group.units, generator=make).to(w)
