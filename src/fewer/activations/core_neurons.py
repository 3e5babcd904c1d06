"""CoreInfer: a text has its own neurons, which its beginning shows."""

from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core import Budget, Paper, method
from fewer.select import select

from ._cores import Fixed, cores


@method(
    Paper(
        "2410.18311",
        "CoreInfer: Accelerating Large Language Model Inference with Semantics-Inspired Adaptive Sparse Activation",
        2024,
        ledger=182,
        equation="definitions 1 and 2",
    )
)
class CoreNeurons(Fixed):
    """Compute, for the whole rest of a text, the neurons that were loudest at most of the tokens it began with.

    A token's core is the share `alpha` of its positive activations, the largest; the text's core are the neurons that most of its
    tokens have in theirs. This is the paper's prediction by stability, from the text itself.

    Differs from the paper: its beta is the budget.

    >>> x = torch.tensor([[3.0, 1.0, -1.0], [2.0, 0.0, 9.0], [1.0, 0.5, -2.0]])  # loudest: 0, 2, 0
    >>> m, stats = CoreNeurons(alpha=0.5), observe((), torch.ones(3, 1), torch.ones(1, 1))
    >>> core = m.begin(x, budget("1"), stats)
    >>> m.next(torch.tensor([0.1, 5.0, 5.0]), core, budget("1"), stats)[0]
    tensor([ True, False, False])
    """

    alpha: float = 0.4

    def begin(self, x: Float[Tensor, "*batch tokens in"], budget: Budget, stats: Stats) -> Tensor:
        return select(cores(x, self.alpha).sum(-2).float(), budget)
