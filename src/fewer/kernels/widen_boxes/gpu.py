"""widen_boxes with Triton: a program for each head."""

import triton
import triton.language as tl
from jaxtyping import Float, Int, Shaped
from torch import Tensor


@triton.jit
def _widen(low, high, k, end, k_row, k_head, kv_heads, n, size, dim, D: tl.constexpr):
    unit, lane = tl.program_id(0).to(tl.int64), tl.arange(0, D)
    slot = tl.load(end + unit) - 1
    here = (unit * n + slot // size) * dim + lane
    real = lane < dim
    later = real & (lane * 0 + slot % size != 0)
    new = tl.load(k + unit // kv_heads * k_row + unit % kv_heads * k_head + lane, mask=real).to(low.dtype.element_ty)
    least, most = tl.load(low + here, mask=later, other=0.0), tl.load(high + here, mask=later, other=0.0)
    tl.store(low + here, tl.where(later & (least < new), least, new), mask=real)
    tl.store(high + here, tl.where(later & (most > new), most, new), mask=real)


def widen_boxes(
    low: Shaped[Tensor, "batch kv_heads n dim"],
    high: Shaped[Tensor, "batch kv_heads n dim"],
    k: Float[Tensor, "batch kv_heads 1 dim"],
    end: Int[Tensor, "batch kv_heads"],
    size: int,
) -> tuple[Tensor, Tensor]:
    k = k if k.stride(-1) == 1 else k.contiguous()
    if end.numel():
        sizes = k.shape[1], low.shape[2], size, k.shape[-1]
        _widen[(end.numel(),)](
            low, high, k, end, *k.stride()[:2], *sizes, D=triton.next_power_of_2(k.shape[-1]), num_warps=1
        )
    return low, high
