"""What prefixes means, with every prefix's error written down."""

from jaxtyping import Float
from torch import Tensor

from fewer.layout import Codes


def prefixes(
    codes: Codes, atoms: Float[Tensor, "size dim"], y: Float[Tensor, "rows dim"], weight: Float[Tensor, " k"]
) -> tuple[Float[Tensor, "rows k"], Float[Tensor, "rows k"], Float[Tensor, "rows k dim"]]:
    chosen = atoms[codes.index]
    error = y[:, None] - (codes.value[..., None] * chosen).cumsum(1)
    rest = (weight[:, None] * error).flip(1).cumsum(1).flip(1)
    return error.square().sum(-1), -2 * (rest * chosen).sum(-1), rest
