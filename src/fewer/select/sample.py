"""Selections drawn at random, with the probability that each one had to be drawn."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def inclusion(weight: Float[Tensor, "*rows n"], k: int) -> Float[Tensor, "*rows n"]:
    """Inclusion probabilities in proportion to `weight`, at most 1 each, that sum to exactly k: min(c * weight, 1).

    Whoever c lifts above 1 is certain and the rest share what is left.

    ValueError: a weight that is negative, NaN or infinite; fewer than k weights above 0 in a row.

    >>> inclusion(torch.tensor([4.0, 1.0, 1.0, 2.0]), 2)
    tensor([1.0000, 0.2500, 0.2500, 0.5000])
    """
    if not ((weight >= 0) & (weight < torch.inf)).all():
        raise ValueError("a weight is negative, NaN or infinite: sampling takes what exp or softmax gives")
    if not 0 < k <= int((weight > 0).sum(-1).min()):
        raise ValueError(f"k = {k} of a row in which {int((weight > 0).sum(-1).min())} have weight cannot be drawn")
    best, order = weight.detach().double().sort(descending=True)
    rest = best.flip(-1).cumsum(-1).flip(-1)  # the mass from here on
    places = k - torch.arange(best.shape[-1], device=best.device)
    certain = ((best * places >= rest) & (places > 0)).long().cumprod(-1).bool()  # given that all before it are
    left = k - certain.sum(-1, keepdim=True)
    mass = (best * ~certain).sum(-1, keepdim=True)
    share = torch.where(certain, 1.0, best * left / mass.clamp(min=torch.finfo(best.dtype).tiny))
    return torch.empty_like(share).scatter_(-1, order, share).to(weight.dtype)


def sample(
    weight: Float[Tensor, "*rows n"], k: int, generator: torch.Generator
) -> tuple[Bool[Tensor, "*rows n"], Float[Tensor, "*rows n"]]:
    """Draw exactly k of each row, each with the probability `inclusion(weight, k)`, and return both.

    Systematic sampling in random order (Madow 1949): lay the probabilities end to end and
    take whatever holds one of u, u + 1, ..., u + k - 1. So sum(keep / probability * f) estimates sum(f) without bias
    (Horvitz and Thompson 1952).

    >>> keep, prob = sample(torch.tensor([4.0, 1.0, 1.0, 2.0]), 2, torch.Generator().manual_seed(0))
    >>> int(keep.sum()), bool(keep[0])  # the first is certain
    (2, True)
    """
    prob = inclusion(weight.double(), k)
    mixed = _uniform(prob, generator).argsort()
    ends = prob.gather(-1, mixed).cumsum(-1)
    start = 1 - _uniform(ends[..., :1], generator)  # in (0, 1], so that an empty stretch never holds it
    passed = (ends - start).floor()
    passed = torch.where(ends >= ends[..., -1:], k - 1.0, passed.clamp(max=k - 1))  # the end is k, however it rounds
    drawn = passed.diff(prepend=torch.full_like(start, -1.0)) > 0
    return torch.zeros_like(drawn).scatter_(-1, mixed, drawn), prob.to(weight.dtype)


def gumbel_top_k(
    logits: Float[Tensor, "*rows n"], k: int, generator: torch.Generator
) -> tuple[Bool[Tensor, "*rows n"], Float[Tensor, "*rows n"]]:
    """Draw k of each row without replacement, one after another by softmax: the k largest of logits + Gumbel noise.

    The second result is the probability of being kept given the (k+1)-th largest, kappa: 1 - exp(-exp(logits - kappa)).
    With it sum(keep / probability * f) estimates sum(f) without bias. Kool et al. 2019 (1903.06059), section 4.

    ValueError: k outside 1 ... n.

    >>> keep, prob = gumbel_top_k(torch.tensor([9.0, 0.0, 0.0]), 1, torch.Generator().manual_seed(0))
    >>> keep
    tensor([ True, False, False])
    """
    n = logits.shape[-1]
    if not 0 < k <= n:
        raise ValueError(f"k = {k} of {n} cannot be drawn; write 1 to {n}")
    noise = -(-_uniform(logits, generator).clamp(min=torch.finfo(torch.float64).tiny).log()).log()
    best, order = (logits.detach().double() + noise).topk(min(k + 1, n))
    kappa = best[..., k:] if k < n else torch.full_like(best[..., :1], -torch.inf)
    keep = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, order[..., :k], True)
    return keep, (-torch.expm1(-torch.exp(logits.detach().double() - kappa))).to(logits.dtype)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1) in float64, drawn where the generator lives, so that a seed means the same everywhere."""
    return torch.rand(like.shape, dtype=torch.float64, generator=generator, device=generator.device).to(like.device)
