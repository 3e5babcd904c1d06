"""Taylor by unit: what the loss would lose, to first order, with all maps of a unit together."""

from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import GradMean
from fewer.core import Paper, method
from fewer.weights import ByUnit, Coupled

TITLE = "LLM-Pruner: On the Structural Pruning of Large Language Models"


@method(Paper("2305.11627", TITLE, 2023, equation="eq. 5, first term, summed over a group (Section 3.2)"))
class ChannelTaylor(ByUnit):
    """Keep the units whose removal changes the loss most to first order: sum |w * dL/dw| over all their maps.

    Differs from the paper: no second-order term (its `element^1`), and no fine-tuning follows; the first and the last
    layers are not left out (write that in the pattern: `mlp,!*.layers.0.*`).

    >>> from fewer.weights import Part
    >>> w, grad = torch.tensor([[1.0, 2.0]]), torch.tensor([[-3.0, 1.0]])
    >>> part = Part("down", w, observe((GradMean,), w, torch.ones(1, 2), grad))
    >>> ChannelTaylor().score(Coupled(2, (), part))
    tensor([3., 2.])
    """

    needs = (GradMean,)

    def score(self, group: Coupled) -> Float[Tensor, " units"]:
        return group.total(lambda part: (part.weight.float() * part.stats[GradMean].value).abs())
