"""What every reference of attention does: scores, and a softmax of which some may be nothing."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def scores(
    q: Float[Tensor, "*lead queries dim"], k: Float[Tensor, "*_lead keys dim"], scale: float, cap: float = 0.0
) -> Float[Tensor, "*_out queries keys"]:
    """scale q.k; with a `cap`, cap tanh(scale q.k / cap)."""
    score = scale * q @ k.mT
    return cap * torch.tanh(score / cap) if cap else score


def softmax_of(
    score: Float[Tensor, "*lead queries keys"],
    reads: Bool[Tensor, "*_reads queries keys"],
    v: Float[Tensor, "*_lead keys out"],
) -> tuple[Float[Tensor, "*lead queries out"], Float[Tensor, "*lead queries"]]:
    """softmax(score) v over what is read, and the logarithm of its denominator; who reads nothing gets 0, and -inf.

    >>> out, lse = softmax_of(torch.zeros(2, 2), torch.tensor([[True, True], [False, False]]), torch.tensor([[1.0], [3.0]]))
    >>> out.flatten().tolist(), lse.exp().tolist()
    ([2.0, 0.0], [2.0, 0.0])
    """
    score = score.masked_fill(~reads, -torch.inf)
    lse = score.logsumexp(-1) if score.shape[-1] else score.new_full(score.shape[:-1], -torch.inf)
    weight = (score - lse.clamp(min=torch.finfo(score.dtype).min)[..., None]).exp()  # nothing to read: all zero
    return weight @ v, lse
