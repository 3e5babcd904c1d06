"""Sparse modular activation: tokens that need no attention neither ask nor answer."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.attention import May, Mixer, Out, Reading, RowScore, Shape, by_rows
from fewer.core import Budget, Paper, method

TITLE = "Sparse Modular Activation for Efficient Sequence Modeling"


@method(Paper("2306.11197", TITLE, 2023, ledger=56))
class ModularActivation(Mixer):
    """Decide for each token whether attention runs: who is active reads the last active ones, as many as the budget says.

    p = sigmoid(x.weight + bias) of the token's hidden state; it is active where p > 1/2, and its output is then p times
    softmax attention over the active tokens before it and itself, else zero, so that the module leaves it as it was. The
    gradient reaches the choice through p. All tokens begin active, with p = sigmoid(`start`).

    Differs from the paper: decisions are made of hidden states, there being no state-space layer beside attention to make
    them, and what is activated is the model's own attention, not a gated unit. Active tokens are not gathered: the
    weights are what they would be, the time is not.

    >>> from dataclasses import replace
    >>> x = torch.tensor([[[9.0], [-9.0], [9.0]]])  # the second token is not active
    >>> r = Reading.of(torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1), torch.tensor([[[[1.0], [5.0], [3.0]]]]))
    >>> r = replace(r, x=x, parts={"weight": torch.ones(1), "bias": torch.zeros(1)})
    >>> ModularActivation().mix(replace(r, note=ModularActivation().note(r)), budget("100%")).flatten().round(decimals=3)
    tensor([1., 0., 2.])
    """

    chooses = True
    start: float = 4.0  # of the bias: p = 0.98
    file: str = ""

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        return {"weight": torch.zeros(shape.hidden), "bias": torch.full((1,), self.start)}

    def note(self, r: Reading) -> Float[Tensor, "batch kv_heads keys wide"]:
        active = (self._sure(r) > 0.5).to(r.k.dtype)
        return active[:, None, :, None].expand(-1, r.k.shape[1], -1, -1)

    def mix(self, r: Reading, budget: Budget) -> Out:
        assert r.note is not None
        sure, keys = self._sure(r), r.k.shape[2]
        active = (r.note[..., 0] > 0.5)[:, :, None, None]
        number = (active & (r.at[:, :, None, None] >= 0)).cumsum(-1)  # of the active tokens, which

        def weigh(score: RowScore, may: May, some: slice) -> RowScore:
            there = may[..., :keys] & active  # behind them there may be a sink
            newest = (number * there).amax(-1, keepdim=True)
            there = there & (number > newest - r.counts(budget, some))
            reads = torch.cat([there, may[..., keys:].expand(*there.shape[:-1], -1)], -1)
            score = torch.where(reads.any(-1, keepdim=True), score.masked_fill(~reads, -torch.inf), 0.0)
            return score.softmax(-1) * reads

        out = by_rows(r, weigh)
        return (out * (sure * (sure > 0.5)).to(out.dtype)[:, None, :, None]).to(r.q.dtype)

    def _sure(self, r: Reading) -> Float[Tensor, "batch queries"]:
        if r.x is None:
            raise ValueError(f"{self.name} decides by hidden states, and this module is given none")
        wide = torch.promote_types(r.x.dtype, torch.float32)
        weight, bias = (r.parts[name].to(wide) for name in ("weight", "bias"))
        return (r.x.to(wide) @ weight + bias).sigmoid()
