"""What sparse_linear means, in one line of torch."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewer.layout import Layout


def sparse_linear(
    x: Float[Tensor, "*b n_in"], w: Layout, bias: Float[Tensor, " n_out"] | None = None
) -> Float[Tensor, "*b n_out"]:
    return F.linear(x, w.dense().to(x.dtype), None if bias is None else bias.to(x.dtype))
