"""Data whose true dictionary is known, and how much of it another dictionary has found."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .estimate import Score, mean
from .matching import cosines, match

LEAST, MOST = 0.5, 1.5  # how loud a feature is, uniformly


@dataclass(frozen=True, eq=False)
class Planted:
    """`x = mean + scale * z A`: rows of A are unit atoms, z is sparse, nonnegative, and comes as told.

    Sharkey et al. 2022 and Cunningham et al. 2023 (2309.08600) made such data with independent features. Here feature i
    speaks with probability `chance[i]`; where it has a parent, only if the parent speaks (hierarchy); features of one
    `group` share a Gaussian with weight `together`, which correlates them and leaves `chance` as it is.
    """

    atoms: Float[Tensor, "count dim"]
    chance: Float[Tensor, " count"]
    parent: Int64[Tensor, " count"]  # -1 for none; else an earlier feature that is at least as frequent
    group: Int64[Tensor, " count"]
    together: float = 0.0
    mean: "Float[Tensor, ' dim'] | float" = 0.0
    scale: float = 1.0

    @classmethod
    def make(
        cls,
        count: int,
        dim: int,
        active: float | int,
        zipf: float | int = 1.0,
        children: float | int = 0.0,
        group: int = 1,
        together: float | int = 0.0,
        mean: float | int = 0.0,
        scale: float | int = 1.0,
        seed: int = 0,
    ) -> "Planted":
        """`count` random directions, `active` of them a row on average, with chances that fall as 1 / rank^zipf, at most 1/2.

        The rarest share `children` of the features have parents; runs of `group` neighbours in rank are correlated by
        `together`. The mean is `mean` times as long as the rest of a row typically is.
        """
        if not 0 < active <= count / 2 or not 0 <= children < 1 or not 0 <= together < 1 or group < 1:
            raise ValueError(
                f"active={active}, children={children}, together={together}, group={group}: of {count} features at most"
                " half may speak; shares lie between 0 and 1"
            )
        draw = torch.Generator().manual_seed(seed)
        atoms = F.normalize(torch.randn(count, dim, generator=draw), dim=1)
        chance = torch.arange(1, count + 1, dtype=torch.float64) ** -zipf
        for _ in range(100):  # what the cap takes from the loudest is given to the others
            chance = (chance * active / chance.sum()).clamp(max=0.5)
        rank, roots = torch.arange(count), count - int(children * count)
        parent = torch.where(rank < roots, -1, (rank - roots) % roots)
        power = (MOST**3 - LEAST**3) / (3 * (MOST - LEAST))  # of the square of how loud
        far = F.normalize(torch.randn(dim, generator=draw), dim=0) * mean * scale * math.sqrt(active * power)
        return cls(atoms, chance.float(), parent, rank // group, together, far, scale)

    def draw(self, n: int, seed: int = 0) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n count"]]:
        """`n` rows, and the codes that made them."""
        draw = torch.Generator().manual_seed(seed)
        count = len(self.chance)
        alike = torch.randn(n, int(self.group.max()) + 1, generator=draw)[:, self.group]
        own = torch.randn(n, count, generator=draw)
        level = torch.special.ndtr(self.together**0.5 * alike + (1 - self.together) ** 0.5 * own)
        root = self.parent < 0
        given = torch.where(root, self.chance, self.chance / self.chance[self.parent.clamp(min=0)])
        on = level < given.clamp(max=1)
        for i in (~root).nonzero()[:, 0].tolist():
            on[:, i] &= on[:, self.parent[i]]
        z = on * (LEAST + (MOST - LEAST) * torch.rand(n, count, generator=draw))
        return self.mean + self.scale * (z @ self.atoms), z


def mcc(found: Float[Tensor, "latents dim"], truth: Float[Tensor, "count dim"]) -> Score:
    """Mean cosine of the true atoms with their partners in the best one-to-one matching. Higher is better.

    The mean correlation coefficient of Hyvarinen and Morioka 2016 (1605.06336) with cosines for correlations; a true
    atom without a partner counts as 0. Interval over true atoms. Signs count: a latent says its atom, not its opposite.

    >>> mcc(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.eye(2)).value
    1.0
    """
    near = cosines(truth, found)
    i, j = match(near)
    each = torch.zeros(len(truth), dtype=torch.float64)
    each[i] = near[i, j].double().cpu()
    return Score("mcc", mean(each), higher_is_better=True)


def mean_max_cosine(found: Float[Tensor, "latents dim"], truth: Float[Tensor, "count dim"]) -> Score:
    """Mean over true atoms of the largest cosine with any found one (Sharkey et al. 2022; 2309.08600). Higher is better.

    One found atom may serve several true ones: `mcc` does not let it.

    >>> mean_max_cosine(torch.tensor([[0.6, 0.8]]), torch.eye(2)).value  # (0.6 + 0.8) / 2
    0.7000000...
    """
    return Score("mean_max_cosine", mean(cosines(truth, found).double().amax(1).cpu()), higher_is_better=True)


def f1(found: Bool[Tensor, "n latents"], truth: Bool[Tensor, "n count"]) -> Score:
    """Mean over true features of the F1 of their latent, by the matching that makes it largest. Higher is better.

    F1 = 2 both / (one + other), of the rows where each speaks (Makelov et al. 2024, 2405.08366, sec. 3.4). Features that
    never speak are left out. Interval over features.

    >>> speaks = torch.tensor([[True, False], [True, True]])
    >>> f1(speaks[:, :1], speaks).value  # (1 + 0) / 2: one latent serves one feature
    0.5
    """
    truth = truth[:, truth.any(0)]
    both = truth.double().T @ found.double()
    each = 2 * both / (truth.double().sum(0)[:, None] + found.double().sum(0))
    i, j = match(each)
    score = torch.zeros(truth.shape[1], dtype=torch.float64)
    score[i] = each[i, j].cpu()
    return Score("f1", mean(score), higher_is_better=True)


def supervised(x: Float[Tensor, "n dim"], truth: Bool[Tensor, "n count"]) -> Float[Tensor, "count dim"]:
    """The dictionary of one who knows the features: the least-squares atom of each, given who speaks.

    x ~ mean + (truth - mean(truth)) A. The ceiling for learnt ones (Makelov et al. 2024, 2405.08366, sec. 4.1 and app. A.6,
    there the "MSE feature dictionary"; their eq. 4 takes means instead).
    """
    on = truth.double() - truth.double().mean(0)
    return torch.linalg.lstsq(on.cpu(), (x.double() - x.double().mean(0)).cpu(), driver="gelsd").solution.float().to(x)
