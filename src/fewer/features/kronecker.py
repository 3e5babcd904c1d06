"""Kronecker: latents are pairs of what few linear maps say, and speak where both do."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fewer.core import Paper, method

from ._forms import Encoder


@method(Paper("2505.22255", "Train Sparse Autoencoders Efficiently by Utilizing Features Correlation", 2025, ledger=7))
class Kronecker(Encoder):
    """Each head has m + n linear maps p and q, and m n latents: pre[h, i, j] = sqrt(p[h, i] q[h, j]) if both are positive, else 0.

    So a latent is the AND of two, and the encoder has latents (m + n) / (m n) rows in place of one for each latent: half of
    them with 4 and 4, a quarter with 8 and 8, in parameters and in multiplications. Any sparsifier chooses among the latents,
    the decoder has an atom for each.

    Differs from the paper: first atoms are p[h, i] + q[h, j], brought to length one, so that a latent begins by saying what it hears.

    >>> said = torch.tensor([[4.0, 1.0, 9.0, -1.0]])  # one head: p = (4, 1), q = (9, -1)
    >>> Kronecker(2, 2).spread(said)
    tensor([[6., 0., 3., 0.]])
    >>> Kronecker(2, 2).maps(400)
    400
    >>> Kronecker(8, 8).maps(6400)
    1600
    """

    m: int = 4
    n: int = 4

    def __post_init__(self) -> None:
        if self.m < 1 or self.n < 1:
            raise ValueError(f"m={self.m}, n={self.n}: a head needs at least one map of each kind")

    def maps(self, latents: int) -> int:
        heads, left = divmod(latents, self.m * self.n)
        if left or not heads:
            raise ValueError(f"{latents} latents: heads of {self.m} x {self.n} ask for a multiple of {self.m * self.n}")
        return heads * (self.m + self.n)

    def heard(self, index: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any 2"]:
        head, pair = index // (self.m * self.n), index % (self.m * self.n)
        first = head * (self.m + self.n)
        return torch.stack([first + pair // self.n, first + self.m + pair % self.n], -1)

    def join(self, parts: Float[Tensor, "*any 2"]) -> Float[Tensor, "*any"]:
        return _both(parts[..., 0], parts[..., 1])

    def spread(self, said: Float[Tensor, "batch maps"]) -> Float[Tensor, "batch latents"]:
        p, q = said.unflatten(1, (-1, self.m + self.n)).split([self.m, self.n], 2)
        return _both(p[..., :, None], q[..., None, :]).flatten(1)

    def atoms(self, directions: Float[Tensor, "maps dim"]) -> Float[Tensor, "latents dim"]:
        p, q = directions.unflatten(0, (-1, self.m + self.n)).split([self.m, self.n], 1)
        return F.normalize((p[:, :, None] + q[:, None]).flatten(0, 2), dim=1)


def _both(p: Tensor, q: Tensor) -> Tensor:
    """Their geometric mean where both are positive; no gradient elsewhere, nor where it would be all but infinite."""
    product = p.relu() * q.relu()
    if not product.requires_grad:
        return product.sqrt()
    speaks = product > 1e-12
    return torch.where(speaks, torch.where(speaks, product, 1.0).sqrt(), 0.0)
