"""append_slots with Triton: a program for each head."""

import triton
import triton.language as tl
from jaxtyping import Float, Int, Int32, Shaped
from torch import Tensor


@triton.jit
def _append(
    k, v, at, keys, values, places, table, end, k_row, k_head, v_row, v_head, at_row, kv_heads, reads, page, dim, out_dim,
    D: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    unit = tl.program_id(0).to(tl.int64)
    row, head = unit // kv_heads, unit % kv_heads
    slot = tl.load(end + unit)
    where = tl.load(table + unit * reads + slot // page).to(tl.int64) * page + slot % page
    lane, wide = tl.arange(0, D), tl.arange(0, E)
    new = tl.load(k + row * k_row + head * k_head + lane, mask=lane < dim)
    tl.store(keys + where * dim + lane, new.to(keys.dtype.element_ty), mask=lane < dim)
    new = tl.load(v + row * v_row + head * v_head + wide, mask=wide < out_dim)
    tl.store(values + where * out_dim + wide, new.to(values.dtype.element_ty), mask=wide < out_dim)
    tl.store(places + where, tl.load(at + row * at_row))
    tl.store(end + unit, slot + 1)


def append_slots(
    k: Float[Tensor, "batch kv_heads 1 dim"],
    v: Float[Tensor, "batch kv_heads 1 out"],
    at: Int32[Tensor, "batch 1"],
    keys: Shaped[Tensor, "pages page dim"],
    values: Shaped[Tensor, "pages page out"],
    places: Int32[Tensor, "pages page"],
    table: Int32[Tensor, "batch kv_heads reads"],
    end: Int[Tensor, "batch kv_heads"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (k, v))
    if end.numel():
        sizes = (triton.next_power_of_2(n) for n in (k.shape[-1], v.shape[-1]))
        _append[(end.numel(),)](
            k, v, at, keys, values, places, table, end, *k.stride()[:2], *v.stride()[:2], at.stride(0),
            *table.shape[1:], places.shape[1], k.shape[-1], v.shape[-1], *sizes, num_warps=1,
        )  # fmt: skip
    return keys, values, places, end
