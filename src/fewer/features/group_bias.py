"""GroupBias: biases are moved until each group of latents speaks as often as it should."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.core import Budget, Paper, method
from fewer.features import NOTHING, ByFrequency, Own, Pre


@method(
    Paper(
        "2506.14002",
        "Taming Polysemanticity in LLMs: Provable Feature Recovery via Sparse Autoencoders",
        2025,
        ledger=469,
    )
)
class GroupBias(ByFrequency):
    """Who is above zero speaks; the encoder's biases get no gradient, and are moved so that each group meets its frequency.

    Latents are `groups` of equal size; their targets fall from group to group by the same factor, the last being `spread` of
    the first, so that latents find what is common and what is rare; together they are the budget. After every ten steps,
    b -= rate * peak * clamp(share / target - 1, -1, 1), never above 0: `share` is how often a latent spoke in these steps,
    `peak` the most that it said, or for one that was silent the mean of its group. Training ends some percent above the
    targets, as encoders grow; a group's last move, the same for all in it, is made on held-out data.

    Differs from the paper: there a latent is lowered by rate * peak if it spoke too often and raised if it did not speak at all;
    here by how far it is off, both ways, so that frequencies land at their targets and not below. Targets are bound to the
    budget. The encoder is not tied to the decoder.

    >>> GroupBias(groups=2, spread=0.5).targets(4, budget("1"))
    tensor([0.3333, 0.3333, 0.1667, 0.1667])
    >>> share, peak = torch.tensor([0.3333, 0.0, 0.1667, 0.0]), torch.tensor([2.0, 0.0, 3.0, 0.0])
    >>> GroupBias(2, 0.5, 0.1).adapt(-torch.ones(4), share, peak, budget("1")).round(decimals=2)
    tensor([-1.0000, -0.8000, -1.0000, -0.7000])
    """

    groups: int = 10
    spread: float = 0.01
    rate: float = 0.05

    def __post_init__(self) -> None:
        if self.groups < 1 or not 0 < self.spread <= 1:
            raise ValueError(f"groups={self.groups}, spread={self.spread}: give at least 1 group, and a factor up to 1")

    def targets(self, latents: int, budget: Budget) -> Float[Tensor, " latents"]:
        """How often each latent is to speak. ValueError: more often than every second time."""
        steps = self._group(latents) / max(1, self.groups - 1)
        share = self.spread**steps
        share = share * budget.of(latents) / share.sum()
        if share.max() > 0.5:
            raise ValueError(
                f"'{budget}' of {latents} latents in {self.groups} groups: the first would speak more often than not"
            )
        return share

    def code(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return pre.relu()

    def serve(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> Pre:
        return (pre + own["shift"]).relu() if "shift" in own else self.code(pre, budget, own)

    def settle(self, pre: Pre, budget: Budget, own: Own = NOTHING) -> dict[str, Tensor]:
        shift, group, targets = torch.zeros_like(pre[0]), self._group(pre.shape[1]), self.targets(pre.shape[1], budget)
        for g in range(self.groups):
            at = (group == g).nonzero()[:, 0]
            if len(at):
                said = pre[:, at.to(pre.device)].flatten().sort(descending=True).values
                shift[at] = -said[min(len(said) - 1, round(targets[at[0]].item() * len(said)))]
        return {"shift": shift}

    def adapt(
        self,
        bias: Float[Tensor, " latents"],
        share: Float[Tensor, " latents"],
        peak: Float[Tensor, " latents"],
        budget: Budget,
    ) -> Float[Tensor, " latents"]:
        over = (share / self.targets(len(bias), budget).to(share) - 1).clamp(-1, 1)
        group, loud = self._group(len(bias)).to(bias.device), peak.relu()
        total, many = (torch.zeros_like(bias).index_add_(0, group, t) for t in (loud, (loud > 0).to(bias)))
        size = torch.where(loud > 0, loud, (total / many.clamp(min=1))[group])
        return (bias - self.rate * size * over).clamp(max=0)

    def _group(self, latents: int) -> Tensor:
        return torch.arange(latents) * self.groups // latents
