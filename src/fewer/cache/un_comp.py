"""UNComp: heads whose keys say little keep little."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.cache import Allocator, Counts, Past, Score
from fewer.cache._plan import check_plan, planned
from fewer.core import Paper, method

TITLE = "UNComp: Can Matrix Entropy Uncover Sparsity? -- A Compressor Design from an Uncertainty-Aware Perspective"


@method(Paper("2410.03090", TITLE, 2024, ledger=514))
class UnComp(Allocator):
    """Divide a model's slots over its heads by groups of truncated matrix entropy: the lowest of `groups` gets `least` of what the highest gets.

    A head's entropy is -sum l log l over the `top` largest eigenvalues l of the covariance of its queries, which sum to 1 in all. `entropy` are
    those of layers x kv_heads, found by `fit` from what layers have cached, with as many of the latest queries as their evictor kept.

    Differs from the paper: layers and heads are grouped at once, not one after the other, into equal groups; hidden states are not forgotten in prefill;
    `top` is given, and not where the spectrum bends.

    Four heads, two groups: the heads of low entropy keep half as much.

    >>> un, score = UnComp(((0.2, 2.0), (0.1, 3.0)), groups=2, least=0.5), torch.zeros(1, 2, 40)
    >>> [un.allocate(score, torch.tensor([[9, 9]]), layer, 2).tolist() for layer in range(2)]
    [[[6, 12]], [[6, 12]]]
    """

    entropy: tuple[tuple[float, ...], ...] = ()
    groups: int = 4
    least: float = 0.25
    top: int = 16

    def fit(self, layers: Sequence[Past]) -> "UnComp":
        """With the entropies of these, one past for each layer."""
        found = (truncated_entropy(p.grouped(p.q).flatten(2, 3), self.top).mean(0) for p in layers)
        return type(self)(tuple(tuple(e.tolist()) for e in found), self.groups, self.least, self.top)

    def allocate(self, score: Score, counts: Counts, layer: int, layers: int) -> Counts:
        if not self.entropy:
            return counts.minimum((score > -torch.inf).sum(-1))
        check_plan(self.name, self.entropy, layers, counts.shape[1])
        flat = torch.tensor(self.entropy).flatten()
        group = flat.argsort(stable=True).argsort() * self.groups // flat.numel()
        weight = self.least + (1 - self.least) * group / max(1, self.groups - 1)
        return planned(score, counts, weight.view(layers, -1).tolist(), layer)


def truncated_entropy(x: Float[Tensor, "*heads n dim"], top: int) -> Float[Tensor, "*heads"]:
    """-sum l log l over the largest eigenvalues of the covariance, scaled to sum to 1.

    Two alike directions: log 2.

    >>> print(f"{truncated_entropy(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]), 2).item():.4f}")
    0.6931
    """
    x = x.double() - x.double().mean(-2, keepdim=True)
    values = torch.linalg.eigvalsh(x.mT @ x).clamp(min=0)
    share = (values / values.sum(-1, keepdim=True).clamp(min=1e-12))[..., -top:]
    return -torch.special.xlogy(share, share).sum(-1).float()
