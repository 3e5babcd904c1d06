"""GradientTopK: an amount counts by how much it would change what the model says."""

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByKeep, Keep, Own, Pre
from fewer.select import select


@method(
    Paper(
        "2411.10397",
        "Features that Make a Difference: Leveraging Gradients for Improved Dictionary Learning",
        2024,
        ledger=183,
    )
)
class GradientTopK(ByKeep):
    """Keep the k largest of pre * |W_dec grad|, grad being that of the model's loss by what is read; what is kept says its pre.

    |W_dec grad| is how fast the loss changes along each atom, so latents that are weak and matter are kept before loud ones that
    do not. If it is the same for all, this is TopK. The gradient comes with the stream: learn from a site and from the same
    site with ":gradient" (`Live` runs the model to its end and back for it). Where there is none, as when a dictionary is
    used, the k largest pre-activations are kept.

    Differs from the paper: the loss's scale is left out, as it changes no order. Of inference the paper's pages that were read
    say nothing; TopK there is what the encoder alone can do.

    >>> own = {"pull": torch.tensor([[0.1, 2.0, 1.0]])}
    >>> GradientTopK().code(torch.tensor([[5.0, 1.0, 0.4]]), budget("1"), own)  # 0.5, 2.0, 0.4
    tensor([[0., 1., 0.]])
    >>> GradientTopK().code(torch.tensor([[5.0, 1.0, 0.4]]), budget("1"))
    tensor([[5., 0., 0.]])
    """

    feels = True

    def keep(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Keep:
        return select(pre * own["pull"] if "pull" in own else pre, budget)
