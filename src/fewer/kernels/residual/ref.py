"""What residual means, in terms of decode and correlate."""

from jaxtyping import Float
from torch import Tensor

from fewer.kernels.correlate.ref import correlate
from fewer.kernels.decode.ref import decode
from fewer.layout import Codes


def residual(
    codes: Codes, atoms: Float[Tensor, "size dim"], y: Float[Tensor, "rows dim"], bias: Float[Tensor, " dim"]
) -> tuple[Float[Tensor, "rows dim"], Float[Tensor, "rows k"], Float[Tensor, " rows"]]:
    error = y - bias - decode(codes, atoms)
    return error.to(atoms.dtype), correlate(error, atoms, codes.index), error.square().sum(1)
