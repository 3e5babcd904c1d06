"""SpQR: three or four bits in tiny groups, and the few weights that those would harm most kept as they are."""

from fractions import Fraction

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import Gram, Stats
from fewer.core import Budget, Paper, method
from fewer.layout import Dense, Grid, Quantised
from fewer.select import select
from fewer.weights import Keep, Pruned, Quantiser, Weight

from .gptq import in_order

TITLE = "SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression"


@method(Paper("2306.03078", TITLE, 2023, ledger=27, equation="Algorithm 1"))
class Spqr(Quantiser):
    """Round in GPTQ's order, in groups of 16 whose scales are rounded too; keep apart what the grid would harm most.

    A group of `group` columns of a row spans its least and greatest weight: scale s = (high - low) / (2^bits - 1), zero
    point -low / s. Both are rounded to `table_bits` bits, `rows` rows sharing a grid. With U as in GPTQ a group costs
    E = sum (w_j - q_j)^2 / U_jj^2; a weight's sensitivity is what E falls by if the group is rounded without it. The
    share `outliers` of all weights that is most sensitive stays in bfloat16; the grids span the others.

    Bits a weight: bits + 2 table_bits / group + 64 / (group rows) + 32 outliers, and 32 a row: 3.95 as it stands.

    Differs from the paper: the number of outliers is a budget, not a threshold, and they are chosen once, before any
    weight has moved. Columns keep their order. Numbers of 16 bits are bfloat16, which no map overflows.

    The third weight is an outlier of a group of four: without it the others lie on the grid.

    >>> w = torch.tensor([[1.0, -2.0, 30.0, 3.0]])
    >>> sensitivity(w, torch.ones(1, 4, dtype=torch.bool), torch.ones(4), bits=3, group=4).argmax()
    tensor(2)
    """

    needs = (Gram,)
    bits: int = 3
    group: int = 16  # columns that share a scale; the paper's beta_1
    rows: int = 16  # whose scales share a grid; the paper's beta_2
    table_bits: int = 3  # of a scale, and of a zero point; the paper's b_s and b_z
    outliers: float = 0.01  # the share of weights kept apart
    damp: float = 0.01  # of the mean of H's diagonal

    def quantise(self, w: Weight, pruned: Pruned, stats: Stats) -> tuple[Weight, Grid]:
        Grid.around(pruned.weight[:1], pruned.keep[:1], self.bits, self.group)  # refuses what cannot be
        if self.rows < 1 or len(w) % self.rows:
            raise ValueError(
                f"scales of {self.rows} rows share a grid, and {len(w)} rows do not divide; give `rows` that do"
            )
        u = stats[Gram].inverse_root(self.damp).float()
        apart = self.apart(pruned, u)
        scales: list[Quantised] = []
        zeros: list[Quantised] = []

        def fit(v: Weight, at: slice) -> Grid:
            scale, zero = span(v * (pruned.keep & ~apart)[:, at], self.bits)
            scales.append(self.table(scale))
            zeros.append(self.table(zero))
            return Grid(self.bits, scales[-1].dense().mT, zeros[-1].dense().mT, apart[:, at])

        weight = in_order(pruned.weight, pruned.keep, u, self.group, fit)
        return weight, Grid(self.bits, _stacked(scales), _stacked(zeros), apart)

    def apart(self, pruned: Pruned, u: Float[Tensor, "in in"]) -> Keep:
        """The most sensitive weights, a share `outliers` of all, rounded down."""
        count = int(Fraction(str(self.outliers)) * pruned.keep.numel())
        if not count:
            return torch.zeros_like(pruned.keep)
        harm = sensitivity(pruned.weight.float(), pruned.keep, u.diagonal(), self.bits, self.group)
        return select(harm.masked_fill(~pruned.keep, -1), Budget(count, scope="tensor")) & pruned.keep

    def table(self, column: Float[Tensor, "out 1"]) -> Quantised:
        """One column of scales or zero points, rounded: a row of codes."""
        low, high = column.view(1, -1, self.rows).aminmax(dim=-1)
        step = ((high - low) / (2**self.table_bits - 1)).maximum(torch.maximum(low.abs(), high.abs()) / 256)
        step = torch.where(step > 0, step, 1).to(torch.bfloat16)
        zero = -low / step.float() - 2 ** (self.table_bits - 1)
        grid = Grid(self.table_bits, step, zero.to(torch.bfloat16))
        codes = grid.round(column.mT)
        return Quantised.of(codes, torch.ones_like(codes, dtype=torch.bool), grid, Dense.pack)


def span(w: Weight, bits: int) -> tuple[Float[Tensor, "out 1"], Float[Tensor, "out 1"]]:
    """Scale and zero point of the grid from the least weight, or 0, to the greatest, or 0."""
    low, high = w.amin(1, keepdim=True).clamp(max=0), w.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, scale.amax().clamp(min=torch.finfo(torch.float32).tiny))  # an empty group
    return scale, -low / scale - 2 ** (bits - 1)


def sensitivity(w: Weight, keep: Keep, root: Float[Tensor, " in"], bits: int, group: int) -> Weight:
    """What the cost of each weight's group falls by if the group is rounded without it, at cost (w_j - q_j)^2 / U_jj^2."""
    groups = (w * keep).unflatten(1, (-1, group)).flatten(0, 1)
    price = (1 / root.square()).view(1, -1, group).expand(len(w), -1, -1).flatten(0, 1)

    def costs(spanned: Weight) -> Weight:
        grid = Grid(bits, *span(spanned, bits))
        return (groups - grid.values(grid.round(groups))).square() * price

    whole = costs(groups)
    out = whole.clone()  # without a weight inside the span the grid is the same: only its own cost goes
    for at in (groups.argmax(1, keepdim=True), groups.argmin(1, keepdim=True)):
        left = costs(groups.scatter(1, at, 0))
        out.scatter_(1, at, (whole.sum(1) - left.sum(1))[:, None] + left.gather(1, at))
    return out.view_as(w)


def _stacked(tables: list[Quantised]) -> Quantised:
    """The tables of the groups, one below the other."""
    grids = [t.grid for t in tables]
    scale, zero = (
        torch.cat([t for t in each if isinstance(t, Tensor)])
        for each in ([g.scale for g in grids], [g.zero for g in grids])
    )
    codes = torch.cat([t.codes().dense() for t in tables])
    return Quantised.of(codes, torch.ones_like(codes, dtype=torch.bool), Grid(grids[0].bits, scale, zero), Dense.pack)
