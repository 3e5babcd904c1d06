"""Whether a concept's latent is silent where a more special latent speaks for it, and whether one concept is split in many."""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from .estimate import Score, jackknife, mean, share
from .probing import contrast, logistic, macro_f1


def splitting(
    train: Float[Tensor, "n latents"],
    label: Int64[Tensor, " n"],
    test: Float[Tensor, "m latents"],
    truth: Int64[Tensor, " m"],
    gain: float = 0.03,
    most: int = 10,
) -> tuple[Int64[Tensor, " k"], Score]:
    """The latents that a concept takes: one more is one of them while it raises the probe's F1 by more than `gain`.

    Chanin et al. 2024 (2409.14507), sec. 5.3: k-sparse probes for k = 1, 2, ...; the first k after which F1 on `test`
    grows by no more than `gain`. Returns the k latents, and k: 1 is not split, lower is better. Jackknife over the rows of `test`,
    with the same probes.

    Differs from the paper: latents are ranked by the difference of class means, not by the weights of a probe with an L1
    penalty, and F1 is the mean of both classes' (macro), not that of the positive one.
    """
    truth = truth.cpu()
    order = contrast(train, label).abs().argsort(descending=True)[:most]

    @cache
    def said(k: int) -> Tensor:
        probe = logistic(train[:, order[:k]], label)
        return torch.from_numpy(probe.predict(test[:, order[:k]].double().cpu().numpy()))

    def taken(rows: Int64[Tensor, " some"]) -> float:
        before = -gain - 1.0
        for k in range(1, len(order) + 1):
            score = macro_f1(said(k)[rows], truth[rows])
            if k > 1 and score - before <= gain:
                return float(k - 1)
            before = score
        return float(len(order))

    found = jackknife(taken, len(truth))
    return order[: int(found.value)], Score("splitting", found, higher_is_better=False)


def absorption(
    x: Float[Tensor, "n dim"],
    z: Float[Tensor, "n latents"],
    decoder: Float[Tensor, "latents dim"],
    probe: Float[Tensor, " dim"],
    main: Int64[Tensor, " k"],
    near: float = 0.025,
    part: float = 0.4,
) -> tuple[Score, Score]:
    """`full` and `fraction` over inputs that have the concept, as its probe says. Lower is better for both.

    A latent contributes c_i = z_i (d_i . p), with p the unit probe. Full absorption of a token: all `main` latents are
    silent, and the loudest contribution is by one latent whose cosine with the probe is at least `near` and which is at
    least `part` of x . p. Fraction: sum of positive c_i off main / sum of all positive c_i, of latents that near.
    Chanin et al. 2024 (2409.14507), sec. 5.3, in SAEBench's form (2503.09532). Papers plot 1 - x as well: look.

    Differs from the paper: contributions are projections on the probe, not ablations through the model (as in SAEBench);
    `x` is taken about nothing, so give it less the decoder's bias. Wilson's and Student's intervals over tokens.
    """
    p = F.normalize(probe.double(), dim=0)
    pull = decoder.double() @ p
    close = F.normalize(decoder.double(), dim=1) @ p >= near
    given = (z.double() * pull).clamp(min=0) * close
    apart = torch.ones_like(close)
    apart[main] = False
    most = given[:, apart].amax(1)
    silent = (z[:, main] == 0).all(1)
    full = silent & (most > 0) & (most >= part * (x.double() @ p))
    total = given.sum(1)
    fraction = torch.where(total > 0, given[:, apart].sum(1) / total.clamp(min=1e-30), 0.0)
    return (
        Score("full_absorption", share(int(full.sum()), len(x)), higher_is_better=False),
        Score("absorption_fraction", mean(fraction.cpu()), higher_is_better=False),
    )
