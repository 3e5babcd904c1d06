"""What a dictionary misses: how much of it is linear in the input, and how much better codes on the same latents would do."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fewer.layout import Codes

from .estimate import Score, ratio


def refit(codes: Codes, atoms: Float[Tensor, "latents dim"], target: Float[Tensor, "n dim"], rows: int = 256) -> Codes:
    """The least-squares values on each row's own latents: the error never rises, for the old values were one choice.

    min_v |target - v A_S|^2, S the row's support; `target` is what is written, less the bias. In float64, minimum norm where
    atoms coincide. The inner step of orthogonal matching pursuit; Engels et al. 2024 (2410.14670) use gradient pursuit.

    >>> codes = Codes(torch.tensor([[0, 1]]), torch.tensor([[1.0, 1.0]]), 2)
    >>> refit(codes, torch.eye(2), torch.tensor([[3.0, 4.0]])).value
    tensor([[3., 4.]])
    """
    found = []
    for at in range(0, len(target), rows):
        index, value = codes.index[at : at + rows], codes.value[at : at + rows]
        chosen = atoms[index].double() * (value != 0)[..., None]
        best = torch.linalg.pinv(chosen.mT) @ target[at : at + rows].double()[..., None]
        found.append(torch.where(value != 0, best[..., 0].to(value), 0))
    return Codes(codes.index, torch.cat(found), codes.size)


def dark_matter(x: Float[Tensor, "n dim"], x_hat: Float[Tensor, "n dim"], ridge: float = 1e-6) -> tuple[Score, ...]:
    """Engels et al. 2024 (2410.14670), sec. 4: the error x - x_hat as a linear function of x, and what no such function says.

    error_r2: 1 - sum |e - L x|^2 / sum |e - mean|^2 with the least-squares L; norm_r2: the same of |e|^2 by one linear
    function of x; nonlinear_fvu: sum |e - L x|^2 / sum |x - mean|^2. The maps are fitted on the first half of the rows
    and judged on the other: give rows in random order, more than a few times `dim`. Lower is better for all: a good
    dictionary leaves noise. Intervals over rows.
    """
    if len(x) < 4:
        raise ValueError(f"{len(x)} rows: half of them fit and half judge, so give at least 4")
    x, error = x.double(), (x - x_hat).double()
    half = len(x) // 2
    size = error.square().sum(1, keepdim=True)
    rest, whole = _left(x, error, half, ridge)
    of_norm, all_norm = _left(x, size, half, ridge)
    spread = (x[half:] - x[:half].mean(0)).square().sum(1)
    return (
        Score("error_r2", ratio((whole - rest).cpu(), whole.cpu()), higher_is_better=False),
        Score("norm_r2", ratio((all_norm - of_norm).cpu(), all_norm.cpu()), higher_is_better=False),
        Score("nonlinear_fvu", ratio(rest.cpu(), spread.cpu()), higher_is_better=False),
    )


def _left(x: Tensor, y: Tensor, half: int, ridge: float) -> tuple[Tensor, Tensor]:
    """The squares that remain in each judged row after the linear map, and before it."""
    ones = F.pad(x, (0, 1), value=1.0)
    gram = ones[:half].T @ ones[:half]
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    found = torch.linalg.solve(gram, ones[:half].T @ y[:half])
    return (y - ones @ found)[half:].square().sum(1), (y[half:] - y[:half].mean(0)).square().sum(1)
