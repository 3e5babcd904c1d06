"""Which latents of two dictionaries are the same: by direction, or by what they say of the same tokens."""

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.layout import Codes

from .estimate import Score, jackknife, mean, ratio, share

ROWS = 1024  # tokens made dense at once


def cosines(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, "n m"]:
    """The cosine of each row of `a` with each of `b`; 0 where one is all zeros."""
    return F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T


def match(near: Float[Tensor, "n m"]) -> tuple[Int64[Tensor, " k"], Int64[Tensor, " k"]]:
    """The one-to-one pairs that make the sum of `near` largest (Hungarian; scipy does it). k = min(n, m).

    >>> match(torch.tensor([[0.9, 0.8], [0.8, 0.1]]))  # 0.8 + 0.8 beats 0.9 + 0.1
    (tensor([0, 1]), tensor([1, 0]))
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as e:
        raise ImportError("matching one to one needs scipy: pip install 'fewer[judge]'") from e
    i, j = linear_sum_assignment(near.detach().double().cpu().numpy(), maximize=True)
    return torch.from_numpy(i), torch.from_numpy(j)


def shared(
    a: Float[Tensor, "n dim"],
    b: Float[Tensor, "m dim"],
    encoders: tuple[Float[Tensor, "n in"], Float[Tensor, "m in"]] | None = None,
    above: float = 0.7,
) -> Score:
    """The share of latents of `a` whose partner in `b` has a cosine of at least `above`. Higher is better: more stable.

    Decoders are matched one to one; with `encoders`, these are too, and a latent counts if both name the same partner
    and both cosines are high enough (Paulo and Belrose 2025, 2501.16615, sec. 3). Wilson's interval, latents taken as
    independent.

    >>> shared(torch.eye(3), torch.eye(3)[[2, 0, 1]]).value
    1.0
    """
    near = cosines(a, b)
    i, j = match(near)
    same = near[i, j].cpu() >= above
    if encoders is not None:
        other = cosines(*encoders)
        _, k = match(other)
        same &= (j == k) & (other[i, k].cpu() >= above)
    return Score("shared", share(int(same.sum()), len(a)), higher_is_better=True)


def stability(decoders: Sequence[Float[Tensor, "n dim"]], above: float = 0.7) -> Score:
    """The mean of `shared` over all pairs of dictionaries that differ in their seed. Higher is better.

    Interval over pairs; a dictionary is in several, so take it as a guide where there are few.
    """
    if len(decoders) < 2:
        raise ValueError(f"{len(decoders)} dictionaries: stability compares at least 2")
    each = [shared(a, b, above=above).value for a, b in itertools.combinations(decoders, 2)]
    return Score("stability", mean(torch.tensor(each, dtype=torch.float64)), higher_is_better=True)


def correlations(a: Codes, b: Codes) -> Float[Tensor, "n m"]:
    """Pearson's correlation of each latent of `a` with each of `b` over the same tokens, float64; 0 where one is constant.

    The matrix is held whole: 8 n m bytes. ValueError: not as many tokens.
    """
    rows = len(a.value)
    if rows != len(b.value):
        raise ValueError(f"{rows} and {len(b.value)} tokens: both dictionaries must hear the same ones")
    product = torch.zeros(a.size, b.size, dtype=torch.float64, device=a.value.device)
    totals = [[torch.zeros(c.size, dtype=torch.float64, device=a.value.device) for _ in range(2)] for c in (a, b)]
    for at in range(0, rows, ROWS):
        parts = [Codes(c.index[at : at + ROWS], c.value[at : at + ROWS], c.size).dense().double() for c in (a, b)]
        product += parts[0].T @ parts[1]
        for total, part in zip(totals, parts, strict=True):
            total[0] += part.sum(0)
            total[1] += part.square().sum(0)
    (s, s2), (t, t2) = totals
    spread = (s2 - s.square() / rows).clamp(min=0)[:, None] * (t2 - t.square() / rows).clamp(min=0)
    return torch.where(spread > 0, (product - s[:, None] * t / rows) / spread.clamp(min=1e-30).sqrt(), 0.0)


def sharedness(a: Codes, b: Codes) -> Score:
    """How far each latent of `a` is also one of `b`: its largest correlation there, weighted by how much it says.

    sum_i w_i max_j r_ij / sum_i w_i with w_i = sum of |z_i| over tokens: the indicator of Cornet et al. 2025 (2507.18512),
    after the maximum activation correlation of Lan et al. 2024 (2410.06981). Higher is better: more in common; 1 for a
    permuted copy. Not symmetric. Interval over latents.
    """
    best = correlations(a, b).amax(1).cpu()
    weight = a.value.new_zeros(a.size).index_add_(0, a.index.flatten(), a.value.abs().flatten()).double().cpu()
    return Score("sharedness", ratio(best * weight, weight), higher_is_better=True)


def comparative_sharedness(
    own: Codes, friends: Sequence[Codes], strangers: Sequence[Codes]
) -> Float[Tensor, " latents"]:
    """For each latent, how much more it is shared with one class of models than with another.

    mean over `friends` of max_j r_ij, less the same over `strangers`: after 2507.18512, with plain means.
    """
    sides = [torch.stack([correlations(own, c).amax(1) for c in group]).mean(0) for group in (friends, strangers)]
    return sides[0] - sides[1]


def svcca(x: Float[Tensor, "n a"], y: Float[Tensor, "n b"], keep: float = 0.99) -> Score:
    """How alike two sides are up to a linear map, by `canonical`. Higher is better: more in common; jackknife over rows."""
    return Score("svcca", jackknife(lambda rows: canonical(x[rows], y[rows], keep), len(x)), higher_is_better=True)


def rsa(x: Float[Tensor, "n a"], y: Float[Tensor, "n b"]) -> Score:
    """How alike rows lie to each other on two sides, by `ranked`. Higher is better: more in common; jackknife over rows."""
    return Score("rsa", jackknife(lambda rows: ranked(x[rows], y[rows]), len(x)), higher_is_better=True)


def canonical(x: Float[Tensor, "n a"], y: Float[Tensor, "n b"], keep: float = 0.99) -> float:
    """Mean canonical correlation of the leading directions that hold `keep` of the variance of each side.

    Raghu et al. 2017 (1706.05806). 1 for a rotated or scaled copy. With fewer rows than directions it is near 1 for
    anything: read it beside `against_shuffled`.
    """
    bases = []
    for side in (x, y):
        u, s, _ = torch.linalg.svd(side.double() - side.double().mean(0), full_matrices=False)
        held = s.square().cumsum(0) / s.square().sum()
        bases.append(u[:, : int((held < keep).sum()) + 1])
    found = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1)
    return found.mean().item()


def ranked(x: Float[Tensor, "n a"], y: Float[Tensor, "n b"]) -> float:
    """Representational similarity: Spearman's correlation of the cosines between rows of `x` with those of `y`.

    Kriegeskorte et al. 2008. 1 if the rows of both lie to each other in the same way.
    """
    above = torch.triu_indices(len(x), len(x), 1)
    ranks = [cosines(side, side)[above[0], above[1]].argsort().argsort().double() for side in (x, y)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def against_shuffled(
    measure: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, times: int = 100, seed: int = 0
) -> tuple[Score, Float[Tensor, " times"]]:
    """How far `measure` (`canonical`, `ranked`) of matched rows lies above the same of randomly paired ones, and all of the latter.

    Higher is better: more universal (2410.06981 reports both). Interval over the pairings; the share of pairings that
    reach the matched value is the p-value.
    """
    draw = torch.Generator().manual_seed(seed)
    null = torch.tensor([measure(x, y[torch.randperm(len(y), generator=draw)]) for _ in range(times)])
    return Score("above_shuffled", mean(measure(x, y) - null.double()), higher_is_better=True), null
