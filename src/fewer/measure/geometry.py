"""How the atoms of a dictionary lie to each other: parallelograms, clusters, the decay of their spectrum."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.layout import Codes

from .estimate import Estimate, Score, mean, student


def parallelogram(
    pairs: Sequence[tuple[Tensor, Tensor]] | Float[Tensor, "pairs 2 dim"],
    distractors: Float[Tensor, "k dim"] | None = None,
) -> Score:
    """Mean cosine between the differences b - a of pairs that stand for one relation (man to woman, king to queen).

    Li et al. 2024 (2410.19750), sec. 3. Directions of `distractors` are projected out first (the paper finds them by LDA:
    word length and the like). Higher is better: 1 is a perfect parallelogram. Interval over pairs (each against the mean of
    the others).
    """
    points = pairs if isinstance(pairs, Tensor) else torch.stack([torch.stack(list(p)) for p in pairs])
    move = (points[:, 1] - points[:, 0]).double()
    if len(move) < 2:
        raise ValueError(f"{len(move)} pair: a parallelogram needs at least 2")
    if distractors is not None:
        basis = torch.linalg.qr(distractors.double().T).Q
        move = move - move @ basis @ basis.T
    unit = F.normalize(move, dim=1)
    near = unit @ unit.T
    each = (near.sum(1) - near.diagonal()) / (len(unit) - 1)
    return Score("parallelogram", mean(each.cpu()), higher_is_better=True)


def spectrum(atoms: Float[Tensor, "latents dim"]) -> Float[Tensor, " dim"]:
    """The eigenvalues of the atoms' covariance, largest first, float64."""
    centred = atoms.double() - atoms.double().mean(0)
    return torch.linalg.eigvalsh(centred.T @ centred / len(atoms)).flip(0).clamp(min=0)


def power_law(values: Float[Tensor, " dim"], first: int = 1) -> Estimate:
    """The slope of log eigenvalue by log rank, from rank `first` on (2410.19750, sec. 5); 0 is isotropic. Neither way is better.

    Least squares with its usual interval, which takes eigenvalues as independent: a guide.

    >>> round(power_law(torch.tensor([1.0, 1 / 2, 1 / 3, 1 / 4])).value, 3)
    -1.0
    """
    rank = torch.arange(1, len(values) + 1, dtype=torch.float64)
    real = (values.cpu() > 0) & (rank >= first)
    x, y = rank[real].log(), values.cpu().double()[real].log()
    if len(x) < 3:
        raise ValueError(f"{len(x)} eigenvalues above 0: a slope with an interval needs at least 3")
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y / x.square().sum()).item()
    off = math.sqrt((y - slope * x).square().sum().item() / (len(x) - 2) / x.square().sum().item())
    half = student(len(x) - 2) * off
    return Estimate(slope, slope - half, slope + half, len(x))


def together(codes: Codes, window: int = 1) -> Float[Tensor, "latents latents"]:
    """Phi: the correlation of who speaks in runs of `window` tokens (2410.19750, eq. 3), float64; 0 where one never varies."""
    on = (codes.dense() != 0).double()
    if window > 1:
        on = on[: len(on) // window * window].view(-1, window, codes.size).amax(1)
    on = on - on.mean(0)
    length = on.square().sum(0).sqrt()
    return torch.where((length[:, None] * length) > 0, on.T @ on / (length[:, None] * length).clamp(min=1e-30), 0.0)


def clusters(near: Float[Tensor, "n n"], count: int, seed: int = 0) -> Int64[Tensor, " n"]:
    """Spectral clustering of latents that are `near` each other (negative counts as 0); scikit-learn does it."""
    try:
        from sklearn.cluster import SpectralClustering
    except ImportError as e:
        raise ImportError("clusters need scikit-learn: pip install 'fewer[judge]'") from e
    weights = (near.double().clamp(min=0) + 1e-6).cpu().numpy()
    found = SpectralClustering(count, affinity="precomputed", random_state=seed).fit_predict(weights)
    return torch.from_numpy(found).long()


def lobes(codes: Codes, atoms: Float[Tensor, "latents dim"], count: int, times: int = 100, seed: int = 0) -> Score:
    """Whether latents that speak together also lie together: adjusted mutual information of the two clusterings.

    Clusters by `together` against clusters by cosine (2410.19750, sec. 4). Higher is better; 0 is chance by the adjustment.
    The interval is the value -+ 1.96 standard deviations of `times` random relabellings: it holds 0 unless the two agree.
    """
    from sklearn.metrics import adjusted_mutual_info_score as agreement

    unit = F.normalize(atoms.double(), dim=1)
    one = clusters(together(codes), count, seed).numpy()
    other = clusters(unit @ unit.T, count, seed).numpy()
    value = float(agreement(one, other))
    draw = torch.Generator().manual_seed(seed)
    null = [agreement(one, other[torch.randperm(len(other), generator=draw).numpy()]) for _ in range(times)]
    half = 1.96 * torch.tensor(null, dtype=torch.float64).std().item()
    return Score("lobes", Estimate(value, value - half, value + half, len(atoms)), higher_is_better=True)
