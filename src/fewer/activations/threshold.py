"""One threshold for all tokens, as calibration finds it."""

from fewer.activations import Cut
from fewer.calibrate import Quantiles
from fewer.core import Budget, Paper, method


@method(Paper("2408.14690", "Training-Free Activation Sparsity in Large Language Models", 2024, equation="section 3.2"))
class Threshold(Cut):
    """Compute what scores above the quantile of all scores that leaves the budget, on average over tokens.

    `activations/magnitude 50% + threshold` are the paper's thresholds. `file` names a safetensors file with a number for each place
    (`write_cuts`): what it holds is not fitted again.

    Differs from the paper: the quantile of what is seen, where the paper reads it off a histogram.

    >>> scores = observe((Quantiles,), torch.ones(1, 4), torch.tensor([[1.0, 2.0, 3.0, 4.0]]))[Quantiles]
    >>> Threshold().fit(scores, budget("50%"), 4)
    2.5
    """

    file: str = ""

    def fit(self, scores: Quantiles, budget: Budget, cols: int) -> float:
        return scores.at(1 - budget.of(cols) / cols)
