"""CHESS: a gate that opens onto a loud neuron matters more than one that opens onto a quiet one."""

from jaxtyping import Float
from torch import Tensor

from fewer.activations import HIDDEN, ByReach
from fewer.calibrate import OutputSizes, Stats
from fewer.core import Paper, method


@method(
    Paper(
        "2409.01366",
        "CHESS: Optimizing LLM Inference via Channel-Wise Thresholding and Selective Sparsification",
        2024,
        ledger=195,
        equation="section 3.2",
    )
)
class Chess(ByReach):
    """Compute the hidden neurons with the largest |act(gate(x))_i| * E|up(x)_i|.

    One cut for these scores is a threshold for each channel on |act(gate(x))_i|: the cut over E|up(x)_i|. The paper's selective
    half, thresholds on what q and o read and on nothing else in attention, is a second step: `activations/magnitude @ q, o`.

    >>> up, x = torch.tensor([[1.0], [-3.0]]), torch.tensor([[2.0]])  # |up(x)| = 2, 6
    >>> Chess().score(torch.tensor([1.0, 0.5]), observe(Chess.needs, up, x))
    tensor([2., 3.])
    """

    place, gated = HIDDEN, True
    needs = (OutputSizes,)

    def reach(self, stats: Stats) -> Float[Tensor, " in"]:
        return stats[OutputSizes].value
