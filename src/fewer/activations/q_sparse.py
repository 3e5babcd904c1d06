"""Q-Sparse: the largest inputs of every map, and gradients to all."""

import torch

from fewer.activations import ByReach, Hidden, Keep
from fewer.calibrate import Stats
from fewer.core import Paper, method
from fewer.select import revivable


@method(
    Paper(
        "2407.10969",
        "Q-Sparse: All Large Language Models can be Fully Sparsely-Activated",
        2024,
        ledger=357,
        equation="eq. 2-4, 10",
    )
)
class QSparse(ByReach):
    """Compute the inputs with the largest |x_i|, brought to the length of x; while a model learns so, gradients pass to all inputs.

    `fewer train activations/q_sparse 50% -o model` teaches a model, `activations/q_sparse 50%` is then a step on it. With
    `--activation relu2`, hidden neurons are squared ReLUs, as the paper's.

    Differs from the paper: what is kept is brought to the length of x, not to length 1, so that a model that was trained densely
    begins where it was; the factor is a constant for gradients. No ternary weights.

    >>> m, stats = QSparse(), observe((), torch.ones(1, 2), torch.ones(1, 2))
    >>> x = torch.tensor([-4.0, 3.0], requires_grad=True)
    >>> y = m.heard(x, m.gate(x, budget("1"), stats))
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()  # 5 / 4 as long
    ([-5.0, 0.0], [1.25, 1.25])
    """

    def reach(self, stats: Stats) -> None:
        return None

    def heard(self, x: Hidden, keep: Keep) -> Hidden:
        whole, left = (torch.linalg.vector_norm(v.detach().float(), dim=-1, keepdim=True) for v in (x, x * keep))
        return revivable(x, keep) * (whole / left.clamp(min=1e-12)).where(left > 0, 1).to(x.dtype)
