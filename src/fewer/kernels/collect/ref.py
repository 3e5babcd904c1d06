"""What collect means, in one line of torch."""

from jaxtyping import Float
from torch import Tensor

from fewer.layout import Codes


def collect(codes: Codes, y: Float[Tensor, "rows dim"]) -> Float[Tensor, "size dim"]:
    return codes.dense().to(y.dtype).mT @ y
