"""What correlate means, in one line of torch."""

from jaxtyping import Float, Int64
from torch import Tensor


def correlate(
    y: Float[Tensor, "rows dim"], atoms: Float[Tensor, "size dim"], index: Int64[Tensor, "rows k"]
) -> Float[Tensor, "rows k"]:
    return (atoms[index] * y[:, None]).sum(-1)
