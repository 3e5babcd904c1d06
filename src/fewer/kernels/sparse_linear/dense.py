"""sparse_linear below break-even: unpack, and leave the product to the vendor's library."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from fewer.layout import Layout


def sparse_linear(
    x: Float[Tensor, "*b n_in"], w: Layout, bias: Float[Tensor, " n_out"] | None = None
) -> Float[Tensor, "*b n_out"]:
    # a CPU without bfloat16 units multiplies float32 1.5-13 times faster
    inside = x.dtype if x.is_cuda or _has_small_units() else torch.float32
    out = F.linear(x.to(inside), w.dense().to(inside), None if bias is None else bias.to(inside))
    return out.to(x.dtype)


def _has_small_units() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()
