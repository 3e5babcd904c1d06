"""How well a dictionary says what it reads, and with how many latents: one pass over any amount of data."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.layout import Codes

from .estimate import Score, ratio, share

DENSE = 0.1  # a latent that speaks for more than this share of the tokens says little about any of them


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What `reconstruction` found; `spoke` counts, for each latent, the tokens for which it spoke."""

    l0: Score
    explained: Score
    fvu: Score
    cosine: Score
    spoke: Int64[Tensor, " latents"]
    tokens: int

    @property
    def frequency(self) -> Float[Tensor, " latents"]:
        """The share of the tokens for which each latent spoke, float64."""
        return self.spoke.double() / self.tokens

    @property
    def dead(self) -> Score:
        """The share of latents that spoke for none of `tokens` tokens. Lower is better; the fewer tokens, the more seem dead.

        Wilson's interval, latents taken as independent.
        """
        return Score("dead", share(int((self.spoke == 0).sum()), len(self.spoke)), higher_is_better=False)

    @property
    def dense(self) -> Score:
        """The share of latents that spoke for more than a tenth of the tokens (as in SAEBench). Lower is better."""
        return Score("dense", share(int((self.frequency > DENSE).sum()), len(self.spoke)), higher_is_better=False)


def reconstruction(
    pieces: Iterable[tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"], Codes]],
) -> Reconstruction:
    """L0, explained variance, FVU, cosine, and who spoke, of pieces `(x, x_hat, codes)` of independent data: windows.

    explained = 1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2, fvu = 1 - explained: in float64, about the mean, over the
    whole set. About zero, a large mean would pass for structure; centred residuals would forgive a constant error; means
    of quotients over batches are another number (see Gao et al. 2024, 2406.04093, and the docs of `fvu`).
    l0 = mean number of latents that are not zero; cosine = mean over tokens of x . x_hat / (|x| |x_hat|), 0 where one is 0.

    Intervals are over pieces (`ratio`), so tokens of one window may depend on each other. Kept of each piece is one
    vector of `dim` numbers. ValueError: no piece, nothing that varies, or numbers that are not finite.

    >>> x, x_hat = torch.tensor([[1.0], [3.0]]), torch.tensor([[1.0], [2.0]])
    >>> codes = Codes(torch.tensor([[0], [1]]), torch.tensor([[1.0], [2.0]]), 3)
    >>> r = reconstruction([(x, x_hat, codes)])
    >>> r.explained.value, r.l0.value, r.frequency.tolist()  # 1 - 1 / (1 + 1)
    (0.5, 1.0, [0.5, 0.5, 0.0])
    """
    rows, sums, spoke, origin = [], [], None, None
    for number, (x, x_hat, codes) in enumerate(pieces):
        if not len(x):
            continue
        x, x_hat = x.double(), x_hat.double()
        if not (x.isfinite().all() and x_hat.isfinite().all()):
            raise ValueError(f"piece {number}: an activation or its reconstruction is NaN or infinite")
        origin = x.mean(0) if origin is None else origin  # squares are taken near the mean: no digits are lost
        x0, error = x - origin, (x - x_hat).square().sum()
        alike = torch.nn.functional.cosine_similarity(x, x_hat, dim=1, eps=1e-30).sum()
        on = codes.value != 0
        rows.append(torch.stack([x.new_tensor(len(x)), on.sum().double(), error, alike, x0.square().sum()]).cpu())
        sums.append(x0.sum(0).cpu())
        here = torch.bincount(codes.index[on], minlength=codes.size).cpu()
        spoke = here if spoke is None else spoke + here
    if spoke is None:
        raise ValueError("nothing to judge: give at least one piece with at least one row")
    n, on, error, alike, square = torch.stack(rows).T
    total = torch.stack(sums)
    middle = total.sum(0) / n.sum()
    spread = square - 2 * total @ middle + n * middle.square().sum()
    if not spread.sum() > 1e-12 * square.sum():
        raise ValueError("all rows are the same: there is no variance to explain; give more than one distinct row")
    fvu, explained = ratio(error, spread), ratio(spread - error, spread)
    return Reconstruction(
        Score("l0", ratio(on, n), higher_is_better=False),
        Score("explained", explained, higher_is_better=True),
        Score("fvu", fvu, higher_is_better=False),
        Score("cosine", ratio(alike, n), higher_is_better=True),
        spoke,
        int(n.sum()),
    )
