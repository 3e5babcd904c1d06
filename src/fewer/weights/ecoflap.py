"""ECoFLaP: blocks that the loss feels more keep more, found without a backward pass."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import Stats
from fewer.core import Budget, Paper, method
from fewer.select import divide
from fewer.weights import ByWeight, Share, Weight

TITLE = "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models"


@method(Paper("2310.02998", TITLE, 2023, ledger=500, equation="Section 3.2"))
class Ecoflap(ByWeight):
    """Keep `spread` less than the budget everywhere, and give what is left to blocks as their gradients are long.

    How long a map's gradient is, is felt by shaking it: |L(w + eps z) - L(w - eps z)| / (2 eps) with z normal is on
    average 0.8 |dL/dw|, and two forward passes are all it takes. A block's score is the sum of its maps'.

    Differs from the paper: the loss is the mean over all calibration windows, not one size a batch; so several `draws`
    stand for its several batches. No map falls under a tenth of the budget's share, and the total is exact.

    Both keep 40 %; of the 20 weights that are left, the first block gets three of four.

    >>> shares = [Share("a", (10, 10), 0, torch.tensor(0.3)), Share("b", (10, 10), 1, torch.tensor(0.1))]
    >>> [b.keep for b in Ecoflap().allocate(budget("50% per tensor"), shares)]
    [55, 45]
    """

    quick = False

    spread: float = 0.1  # "max_sparsity_per_layer" is the sparsity + 0.1 in the authors' scripts
    eps: float = 1e-3  # of the step, in units of a weight
    draws: int = 2
    seed: int = 0

    def sense(self, w: Weight, stats: Stats, loss: Callable[[Weight], float]) -> Float[Tensor, ""]:
        make = torch.Generator().manual_seed(hash((self.seed, *w.flatten()[:64].tolist())))
        felt = 0.0
        for _ in range(self.draws):
            step = self.eps * torch.randn(w.shape, generator=make).to(w)
            felt += abs(loss(w + step) - loss(w - step)) / (2 * self.eps * self.draws)
        return torch.tensor(felt)

    def weigh(self, budget: Budget, shares: Sequence[Share]) -> list[float]:
        size = [share.shape[0] * share.shape[1] for share in shares]
        block = [share.name if share.layer is None else share.layer for share in shares]
        weights, felt = defaultdict(int), defaultdict(float)
        for share, n, home in zip(shares, size, block, strict=True):
            weights[home] += n
            felt[home] += float(share.signal if share.signal is not None else 0)
        units = sum(size) // (budget.unit[0] * budget.unit[1])
        keep = budget.of(units) / units
        least = max(keep - self.spread, keep / 10)
        room = {home: max(1, round(n * (1 - least))) for home, n in weights.items()}
        faint = max(felt.values()) / 1000 or 1.0  # who is not felt at all may still fill up when others are full
        more = divide(
            Budget(max(1, round((keep - least) * sum(size))), scope="model"),
            list(room.values()),
            [max(felt[home], faint) / n for home, n in room.items()],
        )
        share = {home: least + n / weights[home] for home, n in zip(room, more, strict=True)}
        return [share[home] for home in block]
