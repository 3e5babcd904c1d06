"""SEAP: the channels and heads that vary most on a task's own data, fewer of them the deeper the layer."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import InputVariance
from fewer.core import Budget, Paper, method
from fewer.select import divide
from fewer.weights import ByUnit, Coupled, Share

TITLE = "SEAP: Training-free Sparse Expert Activation Pruning Unlock the Brainpower of Large Language Models"


@method(Paper("2503.07605", TITLE, 2025, ledger=2, equation="Section 3.2 and 3.3"))
class Seap(ByUnit):
    """Keep the units with the largest Var[x_c] ||w_c||^2, a mean over their columns c, on the data of one task.

    What is calibrated on is the task: windows of code, of retrieval, of one language. The mask is of that task, and a
    model slimmed with it is for that task. A layer at depth x, 0 ... 1 between the `ends`, loses
    L / (1 + exp(-steep * (x - middle))) of its units, with the L that meets the budget; the layers at the ends lose none.

    Differs from the paper: one task a model, no router that picks a mask for each prompt; `ends` is a share of the layers
    (2 of 32 there); where an L would leave a layer less than one unit, the others make up for it.

    >>> from fewer.weights import Part
    >>> w, x = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 4.0], [1.0, -4.0]])
    >>> Seap().score(Coupled(2, (), Part("down", w, observe(Seap.needs, w, x))))
    tensor([ 0., 16.])
    """

    needs = (InputVariance,)
    ends: float = 0.0625
    steep: float = 1.0
    middle: float = 0.3

    def score(self, group: Coupled) -> Float[Tensor, " units"]:
        reader = group.reader
        each = reader.weight.float().square() * reader.stats[InputVariance].value
        return group.by_unit(reader, each).sum(1) * group.units / reader.weight.shape[1]

    def allocate(self, budget: Budget, shares: Sequence[Share]) -> list[Budget]:
        if isinstance(budget.keep, int) or budget.keep == 1:
            return super().allocate(budget, shares)
        layers = sorted({s.layer for s in shares if s.layer is not None})
        sizes, loses = [s.shape[1] for s in shares], [self._loses(s.layer, layers) for s in shares]
        gone, low, high = sum(sizes) - budget.of(sum(sizes)), 0.0, 1e6
        least = [1 / n for n in sizes]
        for _ in range(100):  # the L that meets the budget: what goes grows with it
            factor = (low + high) / 2
            stay = [max(one, 1 - factor * part) for one, part in zip(least, loses, strict=True)]
            lost = sum(n * (1 - s) for n, s in zip(sizes, stay, strict=True))
            low, high = (factor, high) if lost < gone else (low, factor)
        return [budget.with_count(n) for n in divide(budget, sizes, stay)]

    def _loses(self, layer: int | None, layers: Sequence[int]) -> float:
        """The logistic curve at a layer's depth, before it is scaled."""
        ends = round(self.ends * len(layers))
        place = layers.index(layer) - ends if layer is not None else 0
        inner = len(layers) - 2 * ends
        if layer is not None and not 0 <= place < inner:
            return 0.0
        return 1 / (1 + math.exp(-self.steep * (place / max(1, inner - 1) - self.middle)))
