"""The core neurons of a token, as both of CoreInfer's predictions count them."""

from jaxtyping import Bool, Float
from torch import Tensor

from fewer.select import top_each


def cores(x: Float[Tensor, "*tokens in"], alpha: float) -> Bool[Tensor, "*tokens in"]:
    """Each token's core: of its positive activations the share `alpha`, the largest."""
    rows = x.reshape(-1, x.shape[-1])
    counts = ((rows > 0).sum(-1) * alpha).ceil().long()
    return (top_each(rows, counts) & (rows > 0)).reshape(x.shape)
