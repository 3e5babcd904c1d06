"""The second moments of a map's inputs, and what follows from them: a symmetric matrix, of which half is computed."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .crew import Crew
from .stats import Stat, zeros

BAND, BANDS = 128, 8  # rows at least, and bands at most, into which the lower half is cut
LEAF = 128  # rows of a triangular matrix that are inverted at once; above, all work is products
Square = Float[Tensor, "in in"]


@dataclass
class Gram(Stat):
    """The second moments of the inputs, H = X^T X / n: ||D X||^2 = n tr(D H D^T) for any change D of the map.

    >>> observe((Gram,), torch.ones(1, 2), torch.tensor([[1.0, 2.0], [1.0, 0.0]]))[Gram].value
    tensor([[1., 1.],
            [1., 2.]])
    """

    value: Square
    tokens: int = 0
    _roots: dict[float, Square] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, w: Float[Tensor, "out in"]) -> "Gram":
        return cls(zeros(w, w.shape[1], w.shape[1]))

    def see(self, x: Float[Tensor, "tokens in"]) -> None:
        self.tokens += len(x)
        self._roots.clear()
        for a, b in _bands(x.shape[1]):
            part = self.value[a:b, :b]
            part.addmm_(x[:, a:b].mT, x[:, :b], beta=1 - len(x) / self.tokens, alpha=1 / self.tokens)
            self.value[:a, a:b] = part[:, :a].mT

    def merge(self, crew: Crew) -> None:
        self.value, self.tokens = crew.mean(self.value, self.tokens)
        self._roots.clear()

    def energy(self, d: Float[Tensor, "out in"]) -> float:
        """tr(D H D^T): the mean squared length of `D x`."""
        wide, total = d.float(), 0.0
        for a, b in _bands(d.shape[1]):
            crossed = wide[:, a:b] @ self.value[a:b, :b]
            crossed[:, :a] *= 2  # the half above the diagonal
            total += crossed.mul_(wide[:, :b]).sum(dtype=torch.float64).item()
        return total

    def inverse_root(self, damp: float) -> Float[Tensor, "in in"]:
        """`inverse_root` of H, once for all maps that share these inputs."""
        if damp not in self._roots:
            self._roots[damp] = inverse_root(self.value, damp)
        return self._roots[damp]


def _bands(n: int) -> Iterator[tuple[int, int]]:
    """Where the bands of rows of an n x n matrix begin and end."""
    step = max(BAND, -(-n // BANDS))
    return ((a, min(a + step, n)) for a in range(0, n, step))


def inverse_root(h: Square, damp: float) -> Square:
    """U in float64, upper triangular, with U^T U = (H + damp * mean(diag) I)^-1; a dead input counts as 1.

    If H = R R^T with R upper triangular, then U = R^-1; R is the Cholesky factor of H read backwards. If H is singular
    even with `damp`, `damp` grows tenfold, at most to a thousandfold; beyond that it is a ValueError.
    """
    h = h.double()
    dead, mean = (h.diagonal() == 0).double(), h.diagonal().mean()
    for times in (1, 10, 100, 1000):
        root, failed = torch.linalg.cholesky_ex((h + torch.diag(dead + times * damp * mean)).flip(0, 1))
        if not failed:
            return _invert(root.flip(0, 1))
    raise ValueError(f"H = X^T X is singular, even with damp={1000 * damp:g}: show more tokens, or raise `damp`")


def _invert(r: Square) -> Square:
    """The inverse of an upper triangular matrix, in its place: by halves, [A B; 0 C]^-1 = [A' -A'BC'; 0 C']."""
    if len(r) <= LEAF:
        eye = torch.eye(len(r), dtype=r.dtype, device=r.device)
        return r.copy_(torch.linalg.solve_triangular(r, eye, upper=True))
    half = len(r) // 2
    a, c = _invert(r[:half, :half]), _invert(r[half:, half:])
    r[:half, half:] = a @ r[:half, half:].neg() @ c
    return r
