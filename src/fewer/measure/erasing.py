"""Whether a concept can be taken out of activations by a few latents, and nothing else with it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .estimate import Score, mean, ratio
from .probing import contrast, direction


def erased(
    x: Float[Tensor, "n dim"],
    z: Float[Tensor, "n latents"],
    decoder: Float[Tensor, "latents dim"],
    latents: Int64[Tensor, " k"],
) -> Float[Tensor, "n dim"]:
    """`x` with these latents saying their mean in every row; what the dictionary misses stays.

    Differs from the paper: not silence, which also moves all rows off the place for which a probe's bias was learnt.

    >>> erased(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[2.0], [0.0]]), torch.eye(2)[:1], torch.tensor([0]))
    tensor([[2., 4.],
            [2., 0.]])
    """
    return x - (z[:, latents] - z[:, latents].mean(0)) @ decoder[latents]


def blamed(
    z: Float[Tensor, "n latents"],
    label: Int64[Tensor, " n"],
    decoder: Float[Tensor, "latents dim"],
    probe: Float[Tensor, " dim"],
    k: int,
) -> Int64[Tensor, " k"]:
    """The latents to which a probe owes most: the largest (difference of class means of z_i) (d_i . w).

    Marks et al. 2024 (2403.19647), as in SAEBench: the effect of each latent on the probe's logit is linear, so this is
    exact.
    """
    return (contrast(z, label) * (decoder @ probe)).topk(min(k, z.shape[1])).indices


def targeted(
    x: Float[Tensor, "n dim"],
    z: Float[Tensor, "n latents"],
    decoder: Float[Tensor, "latents dim"],
    labels: Sequence[Int64[Tensor, " n"]],
    k: int = 5,
) -> Score:
    """Targeted probe perturbation: how much taking out a class's latents hurts its probe more than the others.

    tpp = mean over i of drop(i, i) - mean over j != i of drop(i, j), where drop(i, j) is what probe j loses in accuracy when
    the `k` latents of class i are erased (Karvonen et al. 2024, 2411.18895; 2503.09532). Higher is better. Interval over
    classes. It depends on how many latents speak: compare at equal l0. Differs from the paper: probes and effects are of
    the same rows; give held-out ones.
    """
    if len(labels) < 2:
        raise ValueError(f"{len(labels)} classes: a perturbation is targeted among at least 2")
    probes = [direction(x, label) for label in labels]
    before = [_right(x, *p, label).mean() for p, label in zip(probes, labels, strict=True)]
    gains = []
    for i, label in enumerate(labels):
        left = erased(x, z, decoder, blamed(z, label, decoder, probes[i][0], k))
        after = [_right(left, *p, other).mean() for p, other in zip(probes, labels, strict=True)]
        drop = torch.stack(before) - torch.stack(after)
        gains.append(drop[i] - (drop.sum() - drop[i]) / (len(labels) - 1))
    return Score("tpp", mean(torch.stack(gains)), higher_is_better=True)


def spurious(
    biased: tuple[Float[Tensor, "n dim"], Int64[Tensor, " n"]],
    x: Float[Tensor, "m dim"],
    z: Float[Tensor, "m latents"],
    decoder: Float[Tensor, "latents dim"],
    wanted: Int64[Tensor, " m"],
    unwanted: Int64[Tensor, " m"],
    k: int = 5,
) -> Score:
    """Spurious correlation removal: how much of a biased probe's error goes when the unwanted concept's latents are erased.

    A probe learns `wanted` from data `biased` in which both concepts coincide, and is tried on balanced data:
    scr = (acc erased - acc) / (acc oracle - acc); the oracle is a probe learnt on the balanced data; latents are those that
    `blamed` finds for the biased probe and `unwanted` (Marks et al. 2024, 2403.19647, sec. 4; 2411.18895). Higher is better;
    1 is all. Interval over rows. ValueError: the biased probe is no worse than the oracle.
    """
    w, b = direction(*biased)
    oracle = _right(x, *direction(x, wanted), wanted)
    before = _right(x, w, b, wanted)
    after = _right(erased(x, z, decoder, blamed(z, unwanted, decoder, w, k)), w, b, wanted)
    if not oracle.mean() > before.mean():
        raise ValueError("the biased probe is as right as the unbiased one: there is no spurious correlation to remove")
    return Score("scr", ratio(after - before, oracle - before), higher_is_better=True)


def _right(x: Tensor, w: Tensor, b: float, label: Tensor) -> Float[Tensor, " n"]:
    return ((x @ w + b > 0) == (label > 0)).double().cpu()
