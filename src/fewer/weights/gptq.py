"""GPTQ: round column by column, and let the columns to come make up for each rounding."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.calibrate import Gram, Stats
from fewer.core import Paper, method
from fewer.layout import Grid
from fewer.weights import Keep, Pruned, Quantiser, Weight

from .sparse_gpt import LEAF, _halves

TITLE = "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"


@method(Paper("2210.17323", TITLE, 2022, equation="Algorithm 1"))
class Gptq(Quantiser):
    """Round the survivors of one column after another, and move those to the right to make up for each rounding.

    With H^-1 = U^T U as in SparseGPT: rounding w_j to q_j moves each w_k, k > j, by -((w_j - q_j) / U_jj) U_jk. A pruned
    weight has one point to be rounded to, 0, so the mask stays, and what would have moved it moves on to its right.
    The grid of a group of columns is laid when its first column is reached.

    Differs from the paper: after a pruner there is a mask. Scales are rounded up to bfloat16, in which they are stored.

    Of two inputs that are always equal, the second takes over the 0.3 that the first loses, and 3.6 is nearest to 4: in
    all 5 for 4.6, where each alone would give 1 + 3.

    >>> w, x = torch.tensor([[1.3, 3.3]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    >>> whole = Pruned(w, torch.ones(1, 2, dtype=torch.bool), budget("100%"))
    >>> grid = Grid(4, torch.ones(1, 1))
    >>> in_order(w, whole.keep, observe((Gram,), w, x)[Gram].inverse_root(1e-6).float(), 2, lambda v, at: grid)
    tensor([[1., 4.]])
    """

    needs = (Gram,)
    bits: int = 4
    group: int = 0  # columns that share a scale; 0: the whole row, as in most of the paper
    zero_point: bool = True
    damp: float = 0.01  # of the mean of H's diagonal; the paper's 1 %

    def quantise(self, w: Weight, pruned: Pruned, stats: Stats) -> tuple[Weight, Grid]:
        u, cols = stats[Gram].inverse_root(self.damp).float(), w.shape[1]
        Grid.around(pruned.weight[:1], pruned.keep[:1], self.bits, self.group)  # refuses what cannot be
        grids: list[Grid] = []

        def fit(v: Weight, at: slice) -> Grid:
            grids.append(Grid.around(v, pruned.keep[:, at], self.bits, zero=self.zero_point))
            return grids[-1]

        weight = in_order(pruned.weight, pruned.keep, u, self.group or cols, fit)
        return weight, join(grids)


def join(grids: list[Grid]) -> Grid:
    """One grid of those of the groups, left to right."""
    zeros = [g.zero for g in grids if isinstance(g.zero, Tensor)]
    scale = torch.cat([g.scale for g in grids if isinstance(g.scale, Tensor)], 1)
    return Grid(grids[0].bits, scale, torch.cat(zeros, 1) if zeros else None)


def in_order(
    w: Weight, keep: Keep, u: Float[Tensor, "in in"], group: int, fit: Callable[[Weight, slice], Grid]
) -> Weight:
    """Round `w` column by column with feedback along `u`. `fit` is shown each group as it has become, and its place."""
    v = w.mT.to(torch.float32, copy=True).contiguous()  # a column of w is a row of v: one piece of memory
    loss, out, stays = torch.zeros_like(v), torch.empty_like(v), keep.mT.contiguous()

    def settle(a: int, b: int, c: int) -> None:
        """Columns b to c make up for the rounding of columns a to b."""
        v[b:c].addmm_(u[a:b, b:c].mT, loss[a:b], alpha=-1)

    def span(begin: int, end: int) -> None:
        grid = fit(v[begin:end].mT, slice(begin, end))

        def columns(a: int, b: int) -> None:
            for j in range(a, b):
                out[j] = rounded(v[j], grid, j - begin) * stays[j]
                loss[j] = (v[j] - out[j]) / u[j, j]
                v[j + 1 : b].addr_(u[j, j + 1 : b], loss[j], alpha=-1)

        _halves(begin, end, LEAF, columns, settle)

    _halves(0, w.shape[1], group, span, settle)
    return out.mT.contiguous()


def rounded(column: Float[Tensor, " out"], grid: Grid, place: int) -> Float[Tensor, " out"]:
    """A column on the grid of its group, in which it stands at `place`; what is apart only loses its low bits."""
    near = grid.values(grid.round(column[:, None]))[:, 0]
    if grid.apart is None:
        return near
    apart: Bool[Tensor, " out"] = grid.apart[:, place]
    return torch.where(apart, column.to(torch.bfloat16).float(), near)
