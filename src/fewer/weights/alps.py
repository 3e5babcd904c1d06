"""ALPS: prune by splitting: one copy fits the outputs, one meets the budget, and they are pulled together."""

import torch
from torch import Tensor

from fewer.calibrate import Gram, Stats
from fewer.core import Budget, Paper, method
from fewer.select import select
from fewer.weights import Keep, Pruner, Weight

from .refit import damped, solve

TITLE = "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models"


@method(Paper("2406.07831", TITLE, 2024, equation="Algorithms 1 and 2"))
class Alps(Pruner):
    """Minimise ||(w - w') X|| under the budget by ADMM, then give the survivors their best values.

    With H = X^T X / n + damp * mean(diag), scaled to a diagonal of ones, and w scaled along:

        b = (H + penalty I)^-1 (H w - v + penalty d),   d = the budget's share of b + v / penalty, the largest,
        v = v + penalty (b - d)

    Every third round the penalty grows, by 1.3 if more than a tenth of the places changed, 1.2 if more than 0.5 %,
    else 1.1, until none changes; then conjugate gradients on the places of d. A reference for how good a layer can
    be: it looks for the places of least error of the whole map, not of one weight after the other, and takes longer.

    Differs from the paper: `50%` counts in each row, as everywhere here; the paper's is `50% per tensor`. Conjugate
    gradients run until they are done (10 rounds there) and are preconditioned by the diagonal, as in its equations.
    As in the authors' code, the penalty falls to a fifth and all begins again while it is too large for the places to
    move at first.

    Two large inputs of opposite sign cancel, and the outputs are those of the third alone; all else would keep one of
    the two:

    >>> x = torch.tensor([[1.0, -1.0, 0.0], [1.0, -1.0, 0.5], [-1.0, 1.0, 0.5], [0.0, 0.0, -1.0]])
    >>> w = torch.tensor([[3.0, 3.0, 1.0]])
    >>> Alps(damp=1e-6).prune(w, budget("1"), observe(Alps.needs, w, x))[0].round(decimals=3)
    tensor([[0., 0., 1.]])
    """

    needs = (Gram,)
    quick = False
    damp: float = 0.01  # of the mean of H's diagonal; the authors' code
    penalty: float = 0.1  # at first; the paper's rho_0
    rounds: int = 300  # of ADMM at most
    tolerance: float = 1e-6  # of conjugate gradients

    def prune(self, w: Weight, budget: Budget, stats: Stats) -> tuple[Weight, Keep]:
        budget.check(*w.shape)
        h = damped(stats[Gram].value, self.damp)
        scale = h.diagonal().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        h = h / scale / scale[:, None]
        target = w.double() * scale
        d, keep = self._split(h, target, budget)
        if keep.all():
            return w.clone(), keep
        out = solve(h, target, keep, d.double(), len(h) + 1000, self.tolerance)
        return (out / scale * keep).to(w.dtype), keep

    def _split(self, h: Tensor, target: Tensor, budget: Budget) -> tuple[Tensor, Keep]:
        """Where ADMM ends: d and its places. In float32, in the basis where H + penalty I is diagonal."""
        size, q = (t.float() for t in torch.linalg.eigh(h))
        fit, penalty = (target @ h).float(), self.penalty
        start = target.float()
        keep = last = select(start.square(), budget)
        start = d = start * keep
        v, moving = torch.zeros_like(d), False
        for i in range(1, self.rounds + 1 if not keep.all() else 0):
            b = ((fit - v + penalty * d) @ q / (size + penalty)) @ q.mT
            pulled = b + v / penalty
            keep = select(pulled.square(), budget)
            d = pulled * keep
            v = penalty * (pulled - d)
            if i % 3:
                continue
            changed, last = int((keep != last).sum()), keep
            share = changed / int(keep.sum())
            if moving or share > 0.005:
                if not changed:
                    break
                moving, penalty = True, penalty * (1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1)
            elif penalty < 1e-6:
                break
            else:
                penalty /= 5
                d, v = (start, torch.zeros_like(v)) if changed else (d, v)
        return d, keep
