"""Balanced assignment: every token to one expert, every expert the same number of tokens, the best total."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def balanced(score: Float[Tensor, "tokens experts"], slack: float | int = 1e-3) -> Bool[Tensor, "tokens experts"]:
    """Assign each token to one expert, tokens / experts to each, for the highest total score: an auction.

    Tokens bid for places with experts; a bid exceeds the going price by what the best expert is worth more than the
    second best, plus epsilon; an expert keeps its highest bids and its lowest of them is its price. Bertsekas and
    Castanon 1989 (auction for similar objects), as in BASE layers (Lewis et al. 2021, 2103.16716, section 3.2).

    Guarantee: the total is within `slack * tokens` of the best, so the best itself for integer scores and a `slack`
    below 1 / tokens. Time grows with the spread of the scores over `slack`; epsilon shrinks in stages to keep it low.

    ValueError: tokens that do not divide by experts, a score that is not finite, a slack not above 0.

    >>> balanced(torch.tensor([[9.0, 1.0], [8.0, 2.0], [7.0, 6.0], [1.0, 0.0]])).int()
    tensor([[1, 0],
            [1, 0],
            [0, 1],
            [0, 1]], dtype=torch.int32)
    """
    tokens, experts = score.shape
    if experts == 0 or tokens % experts:
        raise ValueError(f"{tokens} tokens do not divide over {experts} experts; pad the tokens or leave some out")
    if not score.isfinite().all():
        raise ValueError("a score is NaN or infinite: an auction needs prices")
    if not slack > 0:
        raise ValueError(f"slack is how far from the best a token may end, above 0, not {slack}")
    if experts == 1 or tokens == 0:
        return torch.ones_like(score, dtype=torch.bool)
    value = score.detach().double()
    price, spread = value.new_zeros(experts), float(value.max() - value.min())
    stages = [slack]
    while stages[-1] * 4 < spread:
        stages.append(stages[-1] * 4)
    for epsilon in reversed(stages):
        owner, price = _auction(value, price, epsilon)
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, owner[:, None], True)


def _auction(value: Tensor, price: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Who ends where, and the prices, once nobody could gain more than `epsilon` by moving."""
    tokens, experts = value.shape
    places = tokens // experts
    owner = torch.full((tokens,), -1, device=value.device)
    bid = value.new_zeros(tokens)
    floor = price
    while (free := (owner < 0).nonzero().squeeze(1)).numel():
        gain, choice = (value[free] - price).topk(2)
        owner[free] = choice[:, 0]
        bid[free] = price[choice[:, 0]] + gain[:, 0] - gain[:, 1] + epsilon
        offers = torch.where(owner == torch.arange(experts, device=owner.device)[:, None], bid, -torch.inf)
        best, who = offers.sort(descending=True, stable=True)
        lost = who[:, places:][best[:, places:] > -torch.inf]
        owner[lost] = -1
        full = best[:, places - 1]
        price = torch.where(full > -torch.inf, full, floor)
    return owner, price
