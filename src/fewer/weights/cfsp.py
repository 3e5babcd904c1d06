"""CFSP: blocks that turn the hidden state further keep more channels, and in a block the loud and heavy ones stay."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.calibrate import InputSquares
from fewer.core import Budget, Paper, method
from fewer.select import divide
from fewer.weights import ByUnit, Coupled, Share

TITLE = "CFSP: An Efficient Structured Pruning Framework for LLMs with Coarse-to-Fine Activation Information"


@method(Paper("2409.13199", TITLE, 2024, ledger=510, equation="Section 3.2 and 3.3"))
class Cfsp(ByUnit):
    """Keep the channels of an MLP with the largest share of weight and activation; more of them in blocks that do more.

    Fine: with a_j = rms(x_j) the activation of channel j, and for each hidden feature i the share of channel j among
    all, s_j = a_j * mean_i (|down_ij| a_j / sum_j |down_ij| a_j + |up_ji| / sum_j |up_ji| + |gate_ji| / sum_j |gate_ji|).
    Coarse: block l keeps in proportion to sigmoid(slope * (angle_l - mean angle)), the angle between what it hears and
    says, in half turns. Widths are rounded to `multiple`.

    Differs from the paper: in the published code the shares are taken within a channel, which makes the bracket the same
    for all, and only a_j is left; here they are taken among channels. Angles are means over tokens, and `slope` is what
    the code's constant comes to for its 128 windows of 1024. Blocks hear what the slimmed ones before them say.
    Recovery training is not here.

    Without a gate; the inputs are equally loud, channel 1 has more of both maps:

    >>> from fewer.weights import Part
    >>> up, down, x = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0, 1.0]]), torch.ones(1, 2)
    >>> reader = Part("down", down, observe(Cfsp.needs, down, x))
    >>> Cfsp().score(Coupled(2, (Part("up", up, observe((), up, up)),), reader))
    tensor([0.7500, 1.2500])
    """

    needs = (InputSquares,)
    looks: ClassVar[bool] = True
    readers: ClassVar[tuple[str, ...]] = ("down",)
    multiple: int = 128  # the paper's, for tensor cores
    slope: float = 13.1  # of the sigmoid: 128 * 1024 tokens / 10^4

    def score(self, group: Coupled) -> Float[Tensor, " units"]:
        loud = group.reader.stats[InputSquares].rms
        shares = [_share((group.reader.weight.float().abs() * loud).mT)]
        shares += [_share(part.weight.float().abs()) for part in group.writers]
        return loud * torch.stack(shares).sum(0)

    def allocate(self, budget: Budget, shares: Sequence[Share]) -> list[Budget]:
        if isinstance(budget.keep, int):
            return super().allocate(budget, shares)
        turns = torch.stack([torch.as_tensor(s.signal) for s in shares]).double()
        weights = torch.sigmoid(self.slope * (turns - turns.mean())).tolist()
        counts = divide(budget, [s.shape[1] for s in shares], weights)
        return [budget.with_count(n) for n in counts]


def _share(size: Float[Tensor, "units other"]) -> Float[Tensor, " units"]:
    """The mean over the other side of a channel's share among all channels."""
    whole = size.sum(0)
    return (size / torch.where(whole > 0, whole, 1)).mean(1)
