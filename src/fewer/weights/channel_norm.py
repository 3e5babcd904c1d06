"""Magnitude by unit: what is small in all its maps matters least."""

from jaxtyping import Float
from torch import Tensor

from fewer.core import Paper, method
from fewer.weights import ByUnit, Coupled


@method(Paper("1608.08710", "Pruning Filters for Efficient ConvNets", 2016, equation="Section 3.1"))
class ChannelNorm(ByUnit):
    """Keep the units whose weights have the largest absolute sum over all maps they are in.

    s_u = sum of |w| over the rows of unit u in every writer and its columns in the reader.

    Differs from the paper: a filter is ranked there by its own weights alone, here by those of all coupled maps
    (a channel has a gate, an up row and a down column; a head has four parts).

    >>> from fewer.weights import Part
    >>> up, down = torch.tensor([[1.0, -1.0], [3.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0, -5.0]])
    >>> reads, writes = (Part(role, w, observe((), w, w)) for role, w in (("down", down), ("up", up)))
    >>> ChannelNorm().score(Coupled(3, (writes,), reads))
    tensor([4., 3., 6.])
    """

    def score(self, group: Coupled) -> Float[Tensor, " units"]:
        return group.total(lambda part: part.weight.float().abs())
