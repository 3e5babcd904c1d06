"""Offload: what is old lies elsewhere, and what is chosen comes."""

from torch import Tensor

from fewer.cache import Form, Pages, Stored
from fewer.core import Paper, method

TITLE = "InfiniGen: Efficient Generative Inference of Large Language Models with Dynamic KV Cache Management"


@method(Paper("2406.19707", TITLE, 2024))
class Offload(Form):
    """Keep keys and values on another `device`, and bring the pages that are read.

    With a pattern that decodes, those are the pages that it chose; what it remembers of the others, places and tables stay where the queries
    are.

    Differs from the paper: what is chosen is a pattern's matter (there a partial query of the layer before), and comes when it was chosen, not ahead.
    Other forms lie elsewhere by their own `device`.

    >>> x = torch.tensor([[[1.0, 2.0]]])
    >>> Offload().read(Offload().write(x, 3 * x), (2, 2))
    (tensor([[[1., 2.]]]), tensor([[[3., 6.]]]))
    """

    sinks: int = 0
    recent: int = 64
    device: str = "cpu"

    def write(self, k: Pages, v: Pages, learnt: tuple[Tensor, ...] = ()) -> Stored:
        return k, v

    def read(self, stored: Stored, dims: tuple[int, int], learnt: tuple[Tensor, ...] = ()) -> tuple[Pages, Pages]:
        return stored[0], stored[1]
