"""What encode means: all pre-activations, the k best marked, and where they stand."""

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from fewer.kernels.places.ref import places
from fewer.kernels.top_k.ref import top_k


def encode(
    x: Float[Tensor, "rows in"], w: Float[Tensor, "size in"], b: Float[Tensor, " size"], k: int, by_size: bool
) -> tuple[Int64[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    pre = F.linear(x, w, b)
    index = places(top_k(pre.abs() if by_size else pre, k), k)
    return index, pre.gather(1, index)
