"""NoWag: Wanda on weights that are first brought to one scale in columns and rows."""

import torch

from fewer.calibrate import InputSquares, Stats
from fewer.core import Paper, method
from fewer.weights import ByScore, Weight

TITLE = "NoWag: A Unified Framework for Shape Preserving Compression of Large Language Models"


@method(Paper("2504.14569", TITLE, 2025, equation="NoWag-P"))
class Nowag(ByScore):
    """Keep the largest |w_ij| / (r_i c_j) * rms(x_j), c the lengths of w's columns, r those of its rows after that.

    Differs from the paper: counted in rows unless the budget says otherwise.

    The columns have lengths 5 and 1, so that the rows are [3/5, 0] and [4/5, 1], of lengths 0.6 and sqrt(1.64):

    >>> w, x = torch.tensor([[3.0, 0.0], [4.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    >>> Nowag().score(w, observe(Nowag.needs, w, x))
    tensor([[1.0000, 0.0000],
            [0.6247, 1.5617]])
    """

    needs = (InputSquares,)

    def score(self, w: Weight, stats: Stats) -> Weight:
        w = w.float()
        w = w / w.norm(dim=0).clamp(min=torch.finfo(w.dtype).tiny)
        w = w / w.norm(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
        return w.abs() * stats[InputSquares].rms
