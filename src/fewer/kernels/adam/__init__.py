"""adam: one step of Adam on a matrix whose gradient is known as who used which row, and need never be written down."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewer.kernels import backend_of, load
from fewer.layout import Codes


@dataclass(frozen=True)
class Move:
    """A step of Adam (Kingma and Ba 2015, 1412.6980): the `number`-th from 1, without weight decay.

    `unit`: rows have length 1 and keep it. The gradient's part along a row is taken off first, the row is divided by its
    length afterwards (Bricken et al. 2023, Towards Monosemanticity). `lies`: `scales` on a GPU, where they may be put before a
    step that is repeated as it was recorded.
    """

    rate: float
    number: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    unit: bool = False
    lies: Tensor | None = None

    @property
    def corrected(self) -> tuple[float, float]:
        """What the moments are multiplied by, as both began at 0."""
        return 1 / (1 - self.betas[0] ** self.number), 1 / (1 - self.betas[1] ** self.number)

    @property
    def scales(self) -> tuple[float, float]:
        """w -= rate m / (root sqrt(v) + eps): rate and root, with both corrections in them.

        >>> Move(0.5, 1, betas=(0.5, 0.75)).scales
        (1.0, 2.0)
        """
        a, b = self.corrected
        return self.rate * a, b**0.5

    def there(self, device: torch.device) -> Tensor:
        """`scales` on a GPU."""
        return torch.tensor(self.scales, device=device) if self.lies is None else self.lies


def adam(
    w: Float[Tensor, "size dim"],
    first: Float[Tensor, "size dim"],
    second: Float[Tensor, "size dim"],
    codes: Codes | None,
    y: Float[Tensor, "rows dim"],
    move: Move,
    small: Float[Tensor, "size dim"] | None = None,
) -> None:
    """Move `w` and both moments, in place, by the gradient `collect(codes, y)`; rows that nobody used move too, as Adam's do.

    Without `codes`, `y` is the gradient. `small` is made equal to the new `w`, rounded to its own dtype.

    >>> import torch
    >>> w, first, second = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1, 2)
    >>> adam(w, first, second, Codes(torch.tensor([[0]]), torch.tensor([[2.0]]), 1), torch.tensor([[3.0, 0.0]]), Move(0.1, 1))
    >>> w
    tensor([[0.9000, 1.0000]])
    """
    state, backend = (w, first, second), backend_of(w)
    held = {"small": small} if backend == "gpu" else {}
    result = load("adam", backend)(*state, codes, y, move, **held)
    for old, new in zip(state, result, strict=True):
        if new is not old:
            old.copy_(new)
    if small is not None and (backend != "gpu" or result[0] is not w):
        small.copy_(w)
