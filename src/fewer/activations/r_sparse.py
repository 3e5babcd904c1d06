"""R-Sparse: large inputs use their columns, all others together a low-rank part of the weight."""

from dataclasses import replace
from fractions import Fraction

from jaxtyping import Float
from torch import Tensor

from fewer.activations import Gate, Hidden, Keep
from fewer.calibrate import Factors, Stats
from fewer.core import Budget, Paper, method
from fewer.select import select


@method(
    Paper(
        "2504.19449",
        "R-Sparse: Rank-Aware Activation Sparsity for Efficient LLM Inference",
        2025,
        ledger=424,
        equation="section 4.1",
    )
)
class RSparse(Gate):
    """Compute the inputs with the largest |x_i|, and what the others say by the best approximation of W of rank r.

        y = W[:, S] x_S + U_r diag(s_r) V_r^T x_rest,   W = U diag(s) V^T

    Of a share B of the weight's numbers the low-rank part gets `low_rank * B`: r is the largest rank with r (rows + cols) within it.

    Differs from the paper: one share for all layers, which its evolutionary search would choose for each.

    >>> w, x = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0])), torch.tensor([1.0, 1.0, 3.0, 1.0])
    >>> m, stats = RSparse(low_rank=0.667), observe(RSparse.needs, w, x)
    >>> keep = m.gate(x, budget("75%"), stats)  # 12 numbers: rank 1 takes 8 of 0.667 * 12, one column the 4 left
    >>> keep.int(), m.rest(torch.where(keep, 0.0, x), budget("75%"), stats)
    (tensor([0, 0, 1, 0], dtype=torch.int32), tensor([4., 0., 0., 0.]))
    """

    needs = (Factors,)
    low_rank: float = 0.25

    def gate(self, x: Hidden, budget: Budget, stats: Stats) -> Keep:
        f = stats[Factors]
        rows, cols = len(f.left), f.right.shape[1]
        left = budget.of(cols) * rows - self.always(rows, cols, budget)
        return select(x.abs(), replace(budget, keep=max(1, left // rows)))

    def rest(self, x: Hidden, budget: Budget, stats: Stats) -> Float[Tensor, "*tokens out"] | None:
        f = stats[Factors]
        rank = self.always(len(f.left), f.right.shape[1], budget) // (len(f.left) + f.right.shape[1])
        if not rank:
            return None
        return (x @ f.right[:rank].mT.to(x)) @ (f.left[:, :rank] * f.sizes[:rank]).mT.to(x)

    def always(self, rows: int, cols: int, budget: Budget) -> int:
        if not budget.plain:
            raise ValueError(
                f"activations/r_sparse: '{budget}' says nothing of a rank; write a plain share or count such as '50%'"
            )
        if budget.whole or budget.of(cols) == cols:
            return 0
        room = int(Fraction(str(self.low_rank)) * budget.of(cols) * rows)
        rank = min(room, (budget.of(cols) - 1) * rows) // (rows + cols)  # one column stays
        return max(rank, 0) * (rows + cols)
