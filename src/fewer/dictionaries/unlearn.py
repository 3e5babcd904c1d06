"""Which latents hold what is to be forgotten, and the edits that take it away: for `steered`."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.layout import Codes

from .steer import ClampWhenActive

EPS = 1e-12


@dataclass(frozen=True, eq=False)
class Spoken:
    """How often each latent spoke, and how loud on average over all tokens, in so many tokens."""

    share: Float[Tensor, " latents"]
    mean: Float[Tensor, " latents"]
    tokens: int

    @classmethod
    def of(cls, codes: Codes) -> "Spoken":
        """Counted from codes; counts of several batches add up.

        >>> z = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
        >>> s = Spoken.of(Codes.pack(z, z != 0))
        >>> s.share.tolist(), s.mean.tolist(), s.tokens
        ([0.5, 0.25], [1.5, 0.25], 4)
        """
        tokens = codes.index.reshape(-1, codes.index.shape[-1]).shape[0]
        index, value = codes.index.reshape(-1), codes.value.reshape(-1).float()
        zero = value.new_zeros(codes.size)
        count = zero.index_add(0, index, (value != 0).to(value.dtype))
        return cls(count / max(1, tokens), zero.index_add(0, index, value) / max(1, tokens), tokens)

    def __add__(self, other: "Spoken") -> "Spoken":
        both = self.tokens + other.tokens
        mine, its = self.tokens / max(1, both), other.tokens / max(1, both)
        return Spoken(self.share * mine + other.share * its, self.mean * mine + other.mean * its, both)


def forget_by_frequency(
    forget: Spoken, retain: Spoken, count: int, most_retained: float = 0.01, to: float = -20.0
) -> list[ClampWhenActive]:
    """Of the latents that speak at fewer than `most_retained` of the tokens to keep, the `count` that speak most where it is to be forgotten.

    Each is clamped to `to` where it speaks, and left alone where it is silent (Farrell et al. 2024, 2410.19278): zero does not do.
    Latents that never speak there are not chosen; so there may be fewer.

    >>> def spoke(*share):
    ...     return Spoken(torch.tensor(share), torch.tensor(share), 100)
    >>> [e.latent for e in forget_by_frequency(spoke(0.5, 0.9, 0.2, 0.0), spoke(0.0, 0.3, 0.001, 0.0), 3)]
    [0, 2]
    """
    if not to < 0:
        raise ValueError(f"to={to}: expected a number below 0; to silence latents, use ScaleWhenActive(by=0.0)")
    good = (retain.share < most_retained) & (forget.share > 0)
    order = torch.where(good, forget.share, -1.0).argsort(descending=True, stable=True)[: min(count, int(good.sum()))]
    return [ClampWhenActive(i, to) for i in order.tolist()]


def forget_by_share(forget: Spoken, retain: Spoken, count: int, times: float = -1.0) -> list[ClampWhenActive]:
    """The `count` latents with the highest score, clamped where they speak to `times` their mean where it is to be forgotten:
        score_i = mean_i(forget) / sum_j mean_j(forget) - mean_i(retain) / sum_j mean_j(retain)
    (Cywinski and Deja 2025, SAeUron, 2501.18052). Latents with a score of 0 or less are not chosen.

    Differs from the paper: one score over all tokens, where it has one for each step of a diffusion model, and a latent
    counts as speaking when it is not 0, where it asks for more than its mean.

    >>> forget, retain = (Spoken(torch.ones(2), torch.tensor(m), 9) for m in ([3.0, 1.0], [1.0, 1.0]))
    >>> forget_by_share(forget, retain, 2, times=-2.0)  # 3/4 - 1/2 and 1/4 - 1/2
    [ClampWhenActive(latent=0, to=-6.0)]
    """
    if not times < 0:
        raise ValueError(f"times={times}: expected a number below 0; to silence latents, use ScaleWhenActive(by=0.0)")
    score = forget.mean / (forget.mean.sum() + EPS) - retain.mean / (retain.mean.sum() + EPS)
    order = score.argsort(descending=True, stable=True)[: min(count, int((score > 0).sum()))]
    return [ClampWhenActive(i, times * float(forget.mean[i])) for i in order.tolist()]
