"""Top-AFA: as many latents as it takes to be as long as the input."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByKeep, Keep, Own, Pass, Pre, Scalar, total
from fewer.select import top_each


@method(
    Paper(
        "2503.24277",
        "Evaluating and Designing Sparse Autoencoders by Approximating Quasi-Orthogonality",
        2025,
        ledger=435,
    )
)
class TopAfa(ByKeep):
    """Keep the largest of each input until their length is nearest that of the input: |z|_2 ~ |x|_2 for nearly orthogonal atoms.

    How far they are apart is a loss as well, `weight` times the mean of (|z| - |x|)^2 / dim.

    Differs from the paper: it has no budget; here lengths are matched to `factor` |x|, the largest factor up to 1 with which
    the batch stays within its budget. Inputs that come alone use the factor of held-out data. The loss is divided by dim, as
    the error is.

    >>> own = {"length": torch.tensor([5.0, 1.0])}
    >>> TopAfa().code(torch.tensor([[4.0, 3.0, 0.5], [1.0, 0.9, 0.8]]), budget("2"), own)
    tensor([[4., 3., 0.],
            [1., 0., 0.]])
    """

    looks = True
    weight: float = 1 / 32

    def look(self, x: Float[Tensor, "batch dim"], decoder: Float[Tensor, "latents dim"]) -> Own:
        return {"length": x.norm(dim=1) / decoder.norm(dim=1).mean()}

    def keep(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Keep:
        factor = own["factor"].item() if "factor" in own else self._factor(pre, budget, own)
        return top_each(pre, 1 + (_middles(pre) < factor * own["length"][:, None]).sum(1))

    def settle(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> dict[str, Tensor]:
        return {"factor": torch.tensor(self._factor(pre, budget, own), device=pre.device)}

    def penalty(self, seen: Pass, budget: Budget, own: Own = NOTHING) -> Scalar:
        apart = seen.z.square().sum(1).clamp(min=1e-12).sqrt() - own["length"].detach()
        return self.weight * apart.square().mean() / seen.x.shape[1]

    def _factor(self, pre: Pre, budget: Budget, own: Own) -> float:
        """Row i asks for one more where the factor passes middle_ij / length_i: the budget says how many of these it may pass."""
        passes = (_middles(pre) / own["length"].clamp(min=1e-12)[:, None]).flatten().sort().values
        spare = total(budget, pre) - len(pre)
        if spare >= len(passes) or passes[spare] >= 1:
            return 1.0
        return (passes[max(0, spare - 1)] + passes[spare]).item() / 2 if spare else passes[0].item() / 2


def _middles(pre: Pre) -> Tensor:
    """Half-way between the lengths of the j and the j + 1 largest; one that is not positive is never asked for."""
    best = pre.detach().relu().sort(dim=1, descending=True).values
    reach = best.square().cumsum(1, dtype=torch.float64).sqrt()
    return ((reach[:, :-1] + reach[:, 1:]) / 2).masked_fill(best[:, 1:] == 0, torch.inf)
