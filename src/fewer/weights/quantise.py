"""Rounding to nearest: every survivor becomes a small integer times a scale."""

from fewer.calibrate import Stats
from fewer.core import Paper, method
from fewer.layout import Grid
from fewer.weights import Pruned, Quantiser, Weight

TITLE = "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"


@method(Paper("1712.05877", TITLE, 2017, equation="eq. 1"))
class Quantise(Quantiser):
    """Round each survivor to the nearest point of an even grid: w = scale * (code - zero).

    Every row, or every `group` columns of a row, has a scale: the largest |w| is the largest code, 2^(bits - 1) - 1.
    With a zero point the codes span the least and the greatest survivor instead. What was pruned stays 0, which is a
    point of every grid. No survivor moves by more than half a scale.

    Differs from the paper: no training, no activations; scales are of rows or groups, not of a whole map, and are
    rounded up to bfloat16, in which they are stored.

    >>> w = torch.tensor([[3.5, 0.6, -0.2, 9.0]])
    >>> keep = torch.tensor([[True, True, True, False]])
    >>> Quantise(bits=4).correct(w, Pruned(w * keep, keep, budget("3")), Stats()).weight      # in steps of 3.5 / 7
    tensor([[3.5000, 0.5000, 0.0000, 0.0000]])
    """

    bits: int = 8  # the paper's integers
    group: int = 0  # columns that share a scale; 0: the whole row
    zero_point: bool = False

    def quantise(self, w: Weight, pruned: Pruned, stats: Stats) -> tuple[Weight, Grid]:
        grid = Grid.around(pruned.weight, pruned.keep, self.bits, self.group, self.zero_point)
        return grid.values(grid.round(pruned.weight)) * pruned.keep, grid
