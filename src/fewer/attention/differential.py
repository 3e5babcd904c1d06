"""Differential attention: one map of weights less a share of another."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from fewer.attention import Mixer, Out, Parts, Reading, Shape, by_rows
from fewer.core import Budget, Paper, method

NAMES = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


@method(Paper("2410.05258", "Differential Transformer", 2024, ledger=243, equation="eq. 1 to 3"))
class Differential(Mixer):
    """Pair the heads; a pair's weights are the first one's softmax less lambda times the second one's, over both one's values.

    Heads i and i + h/2 are a pair, which reads [v_i, v_(i + h/2)]; what it makes is brought to length one by a norm with a gain,
    times 1 - lambda_init. lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init, in each layer, with lambda_init =
    0.8 - 0.6 exp(-0.3 layer), layers counted from 0. Noise that both maps have in common goes; weights sum to 1 - lambda.

    A model that was trained with softmax must be trained on. Pairs are those of transformers' DiffLlama.

    >>> Differential().least(layer=0)
    0.2
    """

    floor: float = 1e-5  # of the mean square
    file: str = ""

    def least(self, layer: int) -> float:
        """lambda_init."""
        return round(0.8 - 0.6 * math.exp(-0.3 * layer), 12)

    def begin(self, shape: Shape, make: torch.Generator) -> dict[str, Tensor]:
        halved(self.name, shape)
        first = {name: 0.1 * torch.randn(shape.dim, generator=make) for name in NAMES}
        return {**first, "gain": torch.ones(2 * shape.dim)}

    def mix(self, r: Reading, budget: Budget) -> Out:
        least = self.least(r.layer)
        z = subtracted(pair(r), share(r.parts, least))
        return normed(z, r.parts["gain"], least, self.floor).to(r.q.dtype)


def halved(name: str, shape: Shape) -> None:
    """ValueError for heads that do not make pairs."""
    if shape.heads % 2 or shape.kv_heads % 2:
        raise ValueError(
            f"{name} makes pairs of heads: it takes even numbers of them, not {shape.heads} that read {shape.kv_heads} of keys"
        )


def share(parts: Parts, least: float) -> Tensor:
    """lambda."""
    q1, k1, q2, k2 = (parts[name].to(torch.promote_types(parts[name].dtype, torch.float32)) for name in NAMES)
    return (q1 @ k1).exp() - (q2 @ k2).exp() + least


def pair(r: Reading) -> tuple[Reading, Reading]:
    """Both halves of the heads, each with the values of both."""
    heads, few = r.q.shape[1] // 2, r.k.shape[1] // 2
    if not torch.equal(r.at[:, :few], r.at[:, few:]):
        raise ValueError("the heads of a pair have forgotten different tokens: let a layer's heads forget alike")
    v = torch.cat([r.v[:, :few], r.v[:, few:]], -1)
    halves, one = [], r.mask is None or r.mask.shape[1] == 1
    for mine, keys in ((slice(heads), slice(few)), (slice(heads, None), slice(few, None))):
        seen = r.mask if one else r.mask[:, mine]
        sinks = None if r.sinks is None else r.sinks[mine]
        halves.append(replace(r, q=r.q[:, mine], k=r.k[:, keys], at=r.at[:, keys], v=v, mask=seen, sinks=sinks))
    return halves[0], halves[1]


def subtracted(both: tuple[Reading, Reading], share: Tensor) -> Tensor:
    """What a pair makes of its values, in float32 at least: [batch, pairs, queries, 2 out]."""
    first, second = (by_rows(half, lambda score, may, some: score.softmax(-1)) for half in both)
    return first - share * second


def normed(z: Tensor, gain: Tensor, least: float, floor: float) -> Out:
    """Brought to length one, pair by pair, and laid out as heads."""
    z = z * (z.square().mean(-1, keepdim=True) + floor).rsqrt() * gain.to(z.dtype) * (1 - least)
    return z.unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2)
