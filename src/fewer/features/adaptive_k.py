"""AdaptiveK: a probe says how many latents an input needs."""

import torch
from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByKeep, Keep, Own, Pass, Pre, Scalar, of_batch, total
from fewer.features._each import setting
from fewer.select import top_each

EDGE = (
    0.05  # a share is kept this far from 0 and 1 before its logit is taken: within 3, as the paper's steepness has it
)


@method(
    Paper(
        "2508.17320",
        "AdaptiveK Sparse Autoencoders: Dynamic Sparsity Allocation for Interpretable LLM Representations",
        2025,
        ledger=507,
    )
)
class AdaptiveK(ByKeep):
    """Keep the k_i largest of input i, k_i = low + (high - low) sigmoid(probe - middle), with low = k / 4 and high = 4 k.

    The middle is such that the batch stays within its budget; inputs that come alone use that of held-out data. A probe that
    says the same of all makes it TopK.

    Differs from the paper: there a language model has judged how complex texts are, and the probe, linear in the input, is
    fitted to that. Here nobody judges: the probe, linear in the pre-activations and so in the input, learns how many of an
    input's latents are among the best of the batch. `own["probe"]` and `own["offset"]` may be put in place from elsewhere.

    >>> own = {"probe": torch.tensor([1.0, 0.0, 0.0, 0.0]), "offset": torch.tensor(0.0)}
    >>> AdaptiveK().code(torch.tensor([[9.0, 2.0, 1.5, 1.0], [3.0, 2.0, 1.0, 0.5]]), budget("2"), own)
    tensor([[9.0000, 2.0000, 1.5000, 0.0000],
            [3.0000, 0.0000, 0.0000, 0.0000]])
    """

    spread: float = 4.0  # low = k / spread, high = k * spread
    weight: float = 1.0  # of the probe's error

    def begin(self, latents: int, budget: Budget) -> dict[str, Tensor]:
        return {"probe": torch.zeros(latents), "offset": torch.zeros(())}

    def keep(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Keep:
        middle = own["middle"].item() if "middle" in own else self._middle(pre, budget, own)
        return top_each(pre, self._counts(_said(pre, own), self._ends(budget, pre), middle))

    def settle(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> dict[str, Tensor]:
        return {"middle": torch.tensor(self._middle(pre, budget, own), device=pre.device)}

    def penalty(self, seen: Pass, budget: Budget, own: Own = NOTHING) -> Scalar:
        pre, (low, high) = seen.pre.detach(), self._ends(budget, seen.pre)
        best = of_batch(pre, budget).sum(1)
        right = ((best - low) / max(high - low, 1)).clamp(EDGE, 1 - EDGE).logit()
        return self.weight * (_said(pre, own) - right).square().mean()

    def _ends(self, budget: Budget, pre: Pre) -> tuple[int, int]:
        k = budget.of(pre.shape[1])
        return max(1, int(k / self.spread)), min(pre.shape[1], int(k * self.spread))

    def _counts(self, said: Tensor, ends: tuple[int, int], middle: float) -> Tensor:
        low, high = ends
        return (low + (high - low) * (said.double() - middle).sigmoid()).floor().long()

    def _middle(self, pre: Pre, budget: Budget, own: Own) -> float:
        said, ends = _said(pre, own).detach().cpu(), self._ends(budget, pre)  # many looks at few numbers
        far = 40.0 + said.abs().max().item()
        return -setting(lambda t: self._counts(said, ends, -t), total(budget, pre), -far, far)


def _said(pre: Pre, own: Own) -> Tensor:
    """What the probe says; over the root of the number of latents, so that a step of Adam moves it by little."""
    return pre @ own["probe"] / len(own["probe"]) ** 0.5 + own["offset"]
