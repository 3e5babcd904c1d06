"""Refit: the survivors that are best for their places."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.calibrate import Gram, Stats
from fewer.core import Paper, method
from fewer.weights import Corrector, Pruned, Weight

TITLE = "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot"


@method(Paper("2301.00774", TITLE, 2023, equation="eq. 2"))
class Refit(Corrector):
    """Give each row's survivors S the values that bring its outputs closest to the dense map's.

    w'_S = H_SS^-1 H_S,: w with H = X^T X / n + damp * mean(diag) I, so that `damp` pulls towards the dense weights,
    not towards zero. The mask does not move.

    Differs from the paper: eq. 2 is what it calls exact and too slow, a system a row. All rows are solved at once by
    conjugate gradients on their survivors (as in ALPS, 2406.07831, Algorithm 2), in float64 until every row's
    residual is `tolerance` of the largest at first: 768 columns take 0.4 of a Cholesky factor a row's time, 2048 a
    seventh.

    Of two inputs that are always equal, the one that stays takes over the other's weight:

    >>> w, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    >>> before = Pruned(torch.tensor([[0.0, 2.0]]), torch.tensor([[False, True]]), budget("1"))
    >>> Refit(damp=0.0).correct(w, before, observe(Refit.needs, w, x)).weight
    tensor([[0., 3.]])
    """

    needs = (Gram,)
    damp: float = 0.01  # of the mean of H's diagonal; SparseGPT's 1 %
    tolerance: float = 1e-6
    rounds: int = 1000  # at most; 25 to 30 are usual

    def correct(self, w: Weight, pruned: Pruned, stats: Stats) -> Pruned:
        if pruned.around:
            raise ValueError("refit moves the survivors alone and cannot see what is put around them: do it before")
        target = w.double()
        if pruned.low_rank:
            target = target - pruned.low_rank[0].double() @ pruned.low_rank[1].double()
        h = damped(stats[Gram].value, self.damp)
        out = solve(h, target, pruned.keep, pruned.weight.double(), self.rounds, self.tolerance)
        out = torch.where(pruned.keep.all(1, keepdim=True), target, out)  # a row that lost nothing is what it was
        return replace(pruned, weight=out.to(w.dtype))


def damped(h: Float[Tensor, "n n"], damp: float) -> Float[Tensor, "n n"]:
    """H + damp * mean(diag) I, in float64."""
    h = h.double()
    return h + damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype, device=h.device)


def solve(
    h: Float[Tensor, "n n"],
    target: Float[Tensor, "rows n"],
    keep: Bool[Tensor, "rows n"],
    start: Float[Tensor, "rows n"],
    rounds: int,
    tolerance: float,
) -> Float[Tensor, "rows n"]:
    """The x, zero outside `keep`, of the smallest (x - target) H (x - target)^T in each row.

    Conjugate gradients, preconditioned by H's diagonal: each round is one product of all rows with H, and no row gets
    worse than `start`. Ends when the residual, weighed so, of every row is `tolerance` of the largest at first.
    """
    scale = h.diagonal().clamp(min=torch.finfo(h.dtype).tiny)
    tiny = torch.finfo(h.dtype).tiny
    x = start * keep
    r = (target - x) @ h * keep
    p = z = r / scale
    size = (r * z).sum(1, keepdim=True)
    enough = size.max() * tolerance**2
    for _ in range(rounds):
        if size.max() <= enough:
            break
        q = p @ h * keep
        step = size / (p * q).sum(1, keepdim=True).clamp(min=tiny)
        x, r = x + step * p, r - step * q
        z = r / scale
        size, before = (r * z).sum(1, keepdim=True), size
        p = z + size / before.clamp(min=tiny) * p
    return x
