"""OWL: layers with more outliers keep more."""

from collections import defaultdict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import InputSquares, Stats
from fewer.core import Budget, Paper, method
from fewer.weights import ByWeight, Share, Weight

TITLE = "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity"


@method(Paper("2310.05175", TITLE, 2023, equation="Section 3.3"))
class Owl(ByWeight):
    """Keep more where more Wanda scores are `times` their map's mean, layers differing by at most 2 * `spread`.

    A layer's outlier share D is that of all its maps together. With D scaled to 0 ... 1 over the layers, each map of
    layer l keeps K + 2 * spread * (D_l - mean D), K the share that the budget keeps, the mean over all weights.

    Differs from the paper: as in the authors' code it is the width of the spread that is 2 * spread (one layer may be
    further than `spread` from K); each map is compared with its own mean (their equation; their code takes
    one mean over a block); no map falls under K / 10; the total is exact, large maps counting for more.

    Of two layers the first alone has outliers: it keeps 2 * 0.1 more than the second.

    >>> shares = [Share("a", (4, 5), 0, torch.tensor(0.3)), Share("b", (4, 5), 1, torch.tensor(0.0))]
    >>> print(*Owl(spread=0.1).allocate(budget("50%"), shares))
    3 2
    """

    needs = (InputSquares,)
    times: float = 5.0  # the paper's M: "M = 5" or 7 in its tables
    spread: float = 0.08  # the paper's lambda

    def signal(self, w: Weight, stats: Stats) -> Float[Tensor, ""]:
        score = w.float().abs() * stats[InputSquares].rms
        return (score > self.times * score.mean()).float().mean()

    def weigh(self, budget: Budget, shares: Sequence[Share]) -> list[float]:
        size = [share.shape[0] * share.shape[1] for share in shares]
        layer = [share.name if share.layer is None else share.layer for share in shares]
        weights, outliers = defaultdict(int), defaultdict(float)
        for share, n, home in zip(shares, size, layer, strict=True):
            weights[home] += n
            outliers[home] += n * float(share.signal if share.signal is not None else 0)
        ratio = [outliers[home] / weights[home] for home in layer]
        low, high = min(ratio), max(ratio)
        scaled = [(r - low) / (high - low or 1.0) for r in ratio]
        middle = sum(n * s for n, s in zip(size, scaled, strict=True)) / sum(size)
        units = sum(size) // (budget.unit[0] * budget.unit[1])
        keep = budget.of(units) / units
        return [max(keep / 10, keep + 2 * self.spread * (s - middle)) for s in scaled]
