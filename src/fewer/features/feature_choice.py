"""Feature Choice: each latent chooses its tokens, so none is dead and none is always on."""

from dataclasses import replace

from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByKeep, Keep, Own, Pre
from fewer.select import masked, select


@method(
    Paper(
        "2411.02124",
        "Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse Autoencoders",
        2024,
        ledger=90,
    )
)
class FeatureChoice(ByKeep):
    """Each latent speaks at the m tokens of the batch where it is largest, m = k * tokens / latents (Section 3.2).

    Inference uses a threshold for each latent, fitted on held-out data. Differs from the paper: m is the same for all latents;
    there it follows a Zipf law by rank. Mutual Choice is `features/batch_top_k`.

    >>> FeatureChoice().code(torch.tensor([[3.0, 2.0], [1.0, 4.0]]), budget("1"))  # two tokens, two latents: one token each
    tensor([[3., 0.],
            [0., 4.]])
    """

    def keep(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Keep:
        return select(pre, replace(budget, scope="column", keep=_tokens(pre, budget)))

    def serve(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return masked(pre, pre > own["threshold"]) if "threshold" in own else self.code(pre, budget)

    def settle(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> dict[str, Tensor]:
        ranked = pre.relu().sort(dim=0, descending=True).values
        return {"threshold": ranked[min(_tokens(pre, budget), len(pre) - 1)]}


def _tokens(pre: Pre, budget: Budget) -> int:
    """How many tokens each latent chooses."""
    tokens, latents = pre.shape
    return max(1, round(budget.of(latents) * tokens / latents))
