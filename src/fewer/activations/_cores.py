"""The core neurons of a token and of a text, as both of CoreInfer's predictions have them."""

from jaxtyping import Bool, Float
from torch import Tensor

from fewer.activations import HIDDEN, Keep, Remembering
from fewer.calibrate import Stats
from fewer.core import Budget
from fewer.select import top_each


def cores(x: Float[Tensor, "*tokens in"], alpha: float) -> Bool[Tensor, "*tokens in"]:
    """Each token's core: of its positive activations the share `alpha`, the largest."""
    rows = x.reshape(-1, x.shape[-1])
    counts = ((rows > 0).sum(-1) * alpha).ceil().long()
    return (top_each(rows, counts) & (rows > 0)).reshape(x.shape)


class Fixed(Remembering):
    """The memory is who is computed for the whole rest of a text."""

    place = HIDDEN

    def next(
        self, x: Float[Tensor, "*batch in"], memory: Tensor, budget: Budget, stats: Stats
    ) -> tuple[Keep, Float[Tensor, "*batch in"], Tensor]:
        return memory, x.where(memory, 0), memory
