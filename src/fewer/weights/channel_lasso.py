"""Channel LASSO: few channels that say together what all said, and least squares on top."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fewer.calibrate import Gram
from fewer.core import Budget, Paper, method
from fewer.select import select
from fewer.weights import Coupled, Slimmer, Units, Weight

TITLE = "Channel Pruning for Accelerating Very Deep Neural Networks"


@method(Paper("1707.06168", TITLE, 2017, ledger=527, equation="eq. 1 to 4"))
class ChannelLasso(Slimmer):
    """Keep the units that a LASSO on the output leaves, then refit the reader's weights by least squares.

    With X_u what unit u gives and W_u the columns that read it: min over b of
    1/2 ||sum W_u X_u - sum b_u W_u X_u||^2 + t sum |b_u| ||W_u||, t as large as still leaves `count` of b non-zero; of
    those the largest |b_u| ||W_u|| stay. Then W' = argmin ||W X - W' X_kept||^2 (with `damp` pulling towards W, so that
    what no input speaks of stays as it was). Blocks come in order and hear what the slimmed ones before them say.

    Differs from the paper: t is found by bisection, not by small steps up; the output to reproduce is that of the dense
    map on the inputs it has now, not on those of the dense model; the W_u are not scaled to length one, the penalty is.

    Channel 1 says 0.9 of what channel 0 says, channel 2 something else: 0 and 2 stay, and 0 takes over from 1.

    >>> from fewer.weights import Part
    >>> w, x = torch.tensor([[1.0, 0.5, 1.0]]), torch.tensor([[1.0, 0.9, 0.0], [0.0, 0.0, 1.0]])
    >>> part = Part("down", w, observe(ChannelLasso.needs, w, x))
    >>> keep, new = ChannelLasso(damp=1e-9).slim(Coupled(3, (), part), 2)
    >>> keep.tolist(), new.round(decimals=3)
    ([True, False, True], tensor([[1.4500, 0.0000, 1.0000]]))
    """

    needs = (Gram,)
    refit: bool = True
    damp: float = 1e-4  # of the mean of H's diagonal
    rounds: int = 20  # of bisection
    steps: int = 100  # of the solver (FISTA) in each round

    def slim(self, group: Coupled, count: int) -> tuple[Units, Weight]:
        w, h = group.reader.weight, group.reader.stats[Gram].value.double()
        if count >= group.units:
            return torch.ones(group.units, dtype=torch.bool, device=w.device), w
        keep = select(self._coefficients(group, h, count).abs(), Budget(count))
        columns = group.columns(keep)
        return keep, least_squares(w, h, columns, self.damp) if self.refit else w * columns

    def _coefficients(self, group: Coupled, h: Float[Tensor, "in in"], count: int) -> Float[Tensor, " units"]:
        """b_u ||W_u|| at the largest t that leaves at least `count` of them."""
        w = group.reader.weight.double()
        width, size = w.shape[1] // group.units, group.by_unit(group.reader, w).norm(dim=1)
        scale = torch.where(size > 0, 1 / size, 0)
        both = (h * (w.mT @ w)).unflatten(0, (-1, width)).unflatten(2, (-1, width)).sum((1, 3))
        q, linear = both * scale[:, None] * scale, both.sum(1) * scale
        low, high = 0.0, linear.abs().max().item()
        best = b = size
        for _ in range(self.rounds):
            middle = (low + high) / 2
            b = _lasso(q, linear, middle, b, self.steps)
            if int((b != 0).sum()) >= count:
                low, best = middle, b
            else:
                high = middle
        return best


def _lasso(q: Tensor, linear: Tensor, t: float, start: Tensor, steps: int) -> Tensor:
    """argmin of b' q b / 2 - linear' b + t |b|, by FISTA (Beck and Teboulle 2009) from `start`."""
    rate = 1 / q.abs().sum(1).max().clamp(min=torch.finfo(q.dtype).tiny)
    b, ahead, pace = start, start, 1.0
    for _ in range(steps):
        new = ahead - rate * (q @ ahead - linear)
        new = new.sign() * (new.abs() - rate * t).clamp(min=0)
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead, b, pace = new + (pace - 1) / faster * (new - b), new, faster
    return b


def least_squares(w: Weight, h: Float[Tensor, "in in"], columns: Bool[Tensor, " in"], damp: float) -> Weight:
    """W' with zeros outside `columns` that minimises ||(W - W') X||^2 + damp ||W - W'||^2 over these columns."""
    pull = damp * h.diagonal().mean()
    inner, wide = h[columns][:, columns], w.double()
    system = inner + pull * torch.eye(len(inner), dtype=h.dtype, device=h.device)
    new = torch.zeros_like(w)
    target = wide @ h[:, columns] + pull * wide[:, columns]
    new[:, columns] = torch.linalg.solve(system, target.mT).mT.to(w.dtype)
    return new
