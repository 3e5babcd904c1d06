"""entmax of scores by a kernel that never writes them down, where there is one."""

from jaxtyping import Float
from torch import Tensor

from fewer.attention import Out, Reading
from fewer.kernels import entmax_attention


def fits(r: Reading) -> bool:
    """Whether the kernel knows what is asked, and is faster than some queries at a time: on a GPU."""
    return r.q.is_cuda and r.mask is None and r.sinks is None and r.causal


def by_kernel(r: Reading, alpha: float | Float[Tensor, " heads"]) -> Out:
    """alpha-entmax attention over what may be read."""
    at, now = r.at.contiguous(), r.now.contiguous()
    return entmax_attention(r.q, r.k, r.v, alpha, at, now, r.scale, r.window, r.cap)
