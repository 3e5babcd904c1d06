"""RIA: a weight matters as much as it stands out among those of its row and of its column."""

import torch

from fewer.calibrate import InputSquares, Stats
from fewer.core import Paper, method
from fewer.weights import ByScore, Weight

TITLE = "An Efficient Plug-and-Play Post-Training Pruning Strategy in Large Language Models"


@method(Paper("10.20944/preprints202310.1487.v1", TITLE, 2023, equation="Section 4.1"))
class Ria(ByScore):
    """Keep the largest (|w| / sum of its row + |w| / sum of its column) * rms(input)^power.

    Relative importance keeps something of every input and every output: a row or column of small weights is not
    lost as a whole. Published as "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models"
    (ICLR 2024), whose second half, the permutation of channels for N:M, is `fewer.select.channel_order`.

    Differs from the paper: rms(input) for the length of the input, which is the same for every weight of the map.

    Rows sum to 4 and 2, columns to 3 and 3; the second input is four times as loud, its root twice:

    >>> w, x = torch.tensor([[1.0, -3.0], [2.0, 0.0]]), torch.tensor([[1.0, 4.0], [-1.0, 4.0]])
    >>> Ria().score(w, observe(Ria.needs, w, x))  # 1/4 + 1/3, (3/4 + 3/3) * 2, 2/2 + 2/3, 0
    tensor([[0.5833, 3.5000],
            [1.6667, 0.0000]])
    """

    needs = (InputSquares,)
    power: float = 0.5  # the paper's a

    def score(self, w: Weight, stats: Stats) -> Weight:
        size = w.float().abs()
        none = torch.finfo(torch.float32).tiny  # a row or column of zeros is worth nothing, not 0 / 0
        relative = size / size.sum(1, keepdim=True).clamp(min=none) + size / size.sum(0, keepdim=True).clamp(min=none)
        return relative * stats[InputSquares].rms.pow(self.power)
