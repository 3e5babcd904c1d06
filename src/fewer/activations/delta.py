"""Temporal deltas: what did not change since the last token or frame says again what it said."""

from jaxtyping import Float
from torch import Tensor

from fewer.activations import Keep, Remembering
from fewer.calibrate import Stats
from fewer.core import Budget, Paper, method
from fewer.select import select


@method(
    Paper(
        "2107.07305",
        "Training for temporal sparsity in deep neural networks, application in video processing",
        2021,
        ledger=376,
        equation="section 3",
    )
)
class Delta(Remembering):
    """Compute the inputs that changed most since they were last computed: y += W[:, S] (x - remembered)_S.

    The memory is what the map has heard so far; it hears x where computed, and the memory elsewhere, so no error adds up.

    Differs from the paper: changes are ranked, not quantised, and nothing is trained to change less.

    >>> m, stats = Delta(), observe((), torch.ones(1, 3), torch.ones(1, 3))
    >>> heard = m.begin(torch.tensor([[1.0, 5.0, 2.0]]), budget("1"), stats)
    >>> m.next(torch.tensor([1.0, 5.5, 4.0]), heard, budget("1"), stats)[1]
    tensor([1., 5., 4.])
    """

    def begin(self, x: Float[Tensor, "*batch tokens in"], budget: Budget, stats: Stats) -> Tensor:
        return x[..., -1, :].clone()

    def next(
        self, x: Float[Tensor, "*batch in"], memory: Tensor, budget: Budget, stats: Stats
    ) -> tuple[Keep, Float[Tensor, "*batch in"], Tensor]:
        keep = select((x - memory).abs(), budget)
        heard = x.where(keep, memory)
        return keep, heard, heard
