"""SparseGPT: prune column by column, and let the columns to come make up for each loss."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from fewer.calibrate import Gram, Stats
from fewer.core import Budget, Paper, method
from fewer.kernels.feedback import feedback
from fewer.select import select
from fewer.weights import ByScore, Keep, Weight

LEAF = 16  # columns done one by one; between leaves all work is matrix products
TITLE = "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot"


@method(Paper("2301.00774", TITLE, 2023, ledger=458, equation="Algorithm 1"))
class SparseGpt(ByScore):
    """Prune the weights that cost least, column after column, and move those to the right to make up for them.

    H = X^T X / n + damp * mean(diag), H^-1 = U^T U with U upper triangular: row j of U is what the inverse is once
    the columns before j are settled. Pruning w_j costs (w_j / U_jj)^2 and moves each w_k, k > j, by -(w_j / U_jj) U_jk.
    A mask is chosen for `block` columns at a time (for N:M, for M) from weights that have already moved; each such
    block keeps its part of the budget, rounded down cumulatively, so that N:M, units and all scopes are met exactly.

    Differs from the paper: `50%` counts in each row, as everywhere here; the paper's is `50% per tensor`. The weights
    of a dead input (always zero) go first, but stay if there is room. If H is singular even with `damp`, `damp` grows
    tenfold, at most to a thousandfold; beyond that it is a ValueError, never another method.

    Of two inputs that are always equal, one takes over the other's weight:

    >>> w, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    >>> out, keep = SparseGpt(damp=1e-6).prune(w, budget("1"), observe(SparseGpt.needs, w, x))
    >>> keep, out.round(decimals=3)
    (tensor([[False,  True]]), tensor([[0., 3.]]))
    """

    needs = (Gram,)
    damp: float = 0.01  # of the mean of H's diagonal; the paper's 1 %
    block: int = 128  # columns that one mask is chosen for; the paper's B_s

    def score(self, w: Weight, stats: Stats) -> Weight:
        """w_j^2 / [H^-1]_jj: what the loss of one weight alone costs. Joint budgets rank by it."""
        h = stats[Gram].value
        inverse = stats[Gram].inverse_root(self.damp).square().sum(0)
        return (w.double().square() / inverse * (h.diagonal() > 0)).float()

    def prune(self, w: Weight, budget: Budget, stats: Stats) -> tuple[Weight, Keep]:
        budget.check(*w.shape)
        h, cols = stats[Gram].value, w.shape[1]
        u = stats[Gram].inverse_root(self.damp).float()
        v = w.mT.to(torch.float32, copy=True).contiguous()  # a column of w is a row of v: one piece of memory
        keep, loss = torch.ones_like(v, dtype=torch.bool), torch.zeros_like(v)
        price = (h.diagonal() > 0) / u.diagonal().square()

        def settle(a: int, b: int, c: int) -> None:
            """Columns b to c make up for what columns a to b lost."""
            v[b:c].addmm_(u[a:b, b:c].mT, loss[a:b], alpha=-1)

        def columns(a: int, b: int, n: int = 0, m: int = 0) -> None:
            v[a:b], keep[a:b] = feedback(v[a:b], u[a:b, a:b], price[a:b], keep[a:b], n, m)
            torch.div(v[a:b].masked_fill(keep[a:b], 0), u.diagonal()[a:b, None], out=loss[a:b])

        def span(a: int, b: int) -> None:
            keep[a:b] = _part((v[a:b].square() * price[a:b, None]).mT, budget, a, cols).mT
            _halves(a, b, LEAF, columns, settle)

        wide, group = budget.unit[1], budget.group
        if group and budget.unit == (1, 1) and LEAF % group == 0:
            _halves(0, cols, LEAF, partial(columns, n=budget.of(group), m=group), settle)
        else:
            _halves(0, cols, wide * (group or max(1, self.block // wide)), span, settle)
        return (v * keep).mT.to(w.dtype).contiguous(), keep.mT.contiguous()


def _halves(a: int, b: int, step: int, leaf: Callable, settle: Callable) -> None:
    """Do each `step` columns in order; before a right half is begun it hears, in one product, of the left half."""
    if b - a <= step:
        return leaf(a, b)
    mid = a + -(-(b - a) // step) // 2 * step
    _halves(a, mid, step, leaf, settle)
    settle(a, mid, b)
    _halves(mid, b, step, leaf, settle)


def _part(cost: Weight, budget: Budget, start: int, cols: int) -> Keep:
    """What stays of the columns from `start` on that `cost` covers, out of `cols`."""
    if budget.group or budget.scope == "column":
        return select(cost, budget)  # each group, each column, is counted by itself
    (h, w), (rows, width) = budget.unit, cost.shape
    total = budget.of((rows // h if budget.scope == "tensor" else 1) * (cols // w))
    before, upto = (total * (end // w) // (cols // w) for end in (start, start + width))
    return select(cost, replace(budget, keep=upto - before)) if upto > before else torch.zeros_like(cost).bool()
