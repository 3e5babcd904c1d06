"""attend_blocks with Triton: forward, and a backward whose sums nobody shares."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.tools.tensor_descriptor import TensorDescriptor

from fewer.layout import Blocks

from . import _backward, _forward, ref
from ._columns import by_columns

WIDEST = 256  # a head's numbers that a tile can hold
FOREVER = 2**31 - 1  # no window


@dataclass(frozen=True)
class Cut:
    """How the work is cut: rows and keys of a tile, warps, loads under way at a time, who copies."""

    rows: int
    cols: int
    warps: int
    stages: int
    tma: bool = True


def cut_of(dim: int, size: int, backward: bool) -> tuple[Cut, Cut]:
    """For what goes along rows and, on the way back, for what goes along columns (measured on an H100)."""
    if size > 2 or dim > 128:
        return (Cut(64, 32, 4, 2),) * 2
    return (Cut(64, 64, 4, 2) if backward else Cut(128, 64, 4, 2), Cut(64, 64, 4, 3))


def attend_blocks(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys out"],
    blocks: Blocks,
    at: Int32[Tensor, "batch kv_heads keys"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    if q.dtype == torch.float64 or max(q.shape[-1], v.shape[-1]) > WIDEST or any(n % 16 for n in blocks.block):
        return ref.attend_blocks(q, k, v, blocks, at, now, scale, window, cap)
    if scale <= 0:
        q, scale = (-q, -scale) if scale else (q * 0, 1.0)
    args = blocks, at.contiguous(), now.contiguous(), scale, window, cap
    out, lse = _Attend.apply(*(_rows(t) for t in (q, k, v)), *args)
    return out, lse


class _Attend(torch.autograd.Function):
    """Both results have gradients."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, *rest: Any) -> tuple[Tensor, Tensor]:
        out, lse = forward(q, k, v, blocks, *rest)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rest = blocks, *rest
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor, lse_given: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        return *backward(q, k, v, out, lse, given, lse_given, *ctx.rest), *[None] * len(ctx.rest)


def forward(
    q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, at: Tensor, now: Tensor, scale: float, window: int, cap: float,
    cut: Cut | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The result, and the logarithm of the denominator."""
    batch, heads, queries = q.shape[:3]
    out = torch.empty(batch, heads, queries, v.shape[-1], dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if not out.numel() or not k.shape[2]:
        return out.zero_(), lse.fill_(-torch.inf)
    cut = cut or cut_of(max(q.shape[-1], v.shape[-1]), q.element_size(), False)[0]
    how = _sizes(q, k, v, blocks, cut)
    grid = (triton.cdiv(queries, how["TALL"] // how["PACK"]), batch * heads // how["SHARE"])
    lists = [t.contiguous() for t in _lists(blocks)]
    _forward.forward[grid](
        q, *_described(how, "COLS", k, v), at, now, *lists, out, lse, *_numbers(q, k, v, blocks, scale, window, cap),
        CAP=cap > 0, num_warps=cut.warps, num_stages=cut.stages, **how,
    )  # fmt: skip
    return out, lse


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, given: Tensor, lse_given: Tensor,
    blocks: Blocks, at: Tensor, now: Tensor, scale: float, window: int, cap: float, cuts: tuple[Cut, Cut] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v."""
    batch, heads, queries = q.shape[:3]
    if not out.numel() or not k.numel():
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    given, lse_given, delta = given.contiguous(), lse_given.contiguous(), torch.empty_like(lse)
    wide = triton.next_power_of_2(out.shape[-1])
    rows = lse.numel()
    _backward.inner[(triton.cdiv(rows, 32),)](out, given, lse_given, delta, rows, out.shape[-1], TALL=32, E=wide)
    numbers = _numbers(q, k, v, blocks, scale, window, cap)
    by_row, by_column = cuts or cut_of(max(q.shape[-1], v.shape[-1]), q.element_size(), True)
    how = _sizes(q, k, v, blocks, by_row)
    grid = (triton.cdiv(queries, how["TALL"] // how["PACK"]), batch * heads // how["SHARE"])
    lists = [t.contiguous() for t in _lists(blocks)]
    _backward.for_queries[grid](
        q, *_described(how, "COLS", k, v), at, now, *lists, given, lse, delta, dq, *numbers,
        CAP=cap > 0, num_warps=by_row.warps, num_stages=by_row.stages, **how,
    )  # fmt: skip
    how = _sizes(q, k, v, blocks, by_column)
    how["TMA"] = how["TMA"] and q.is_contiguous() and how["PACK"] == 1 and queries % how["HIGH"] == 0
    grid, (mine, wanted) = (triton.cdiv(k.shape[2], how["COLS"]), batch * k.shape[1]), _described(how, "TALL", q, given)
    _backward.for_keys[grid](
        mine, k, v, at, now, *by_columns(blocks), wanted, lse, delta, dk, dv, *numbers,
        CAP=cap > 0, num_warps=by_column.warps, num_stages=by_column.stages, **how,
    )  # fmt: skip
    return dq, dk, dv


def _lists(blocks: Blocks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return blocks.kv_num_blocks, blocks.kv_indices, blocks.full_kv_num_blocks, blocks.full_kv_indices


def _rows(x: Tensor) -> Tensor:
    """With the last dimension dense; the others may be views."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _sizes(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, cut: Cut) -> dict[str, Any]:
    """What is known when the kernel is compiled. Heads of a group that read the same blocks share tiles of few queries."""
    (high, broad), group = blocks.block, q.shape[1] // k.shape[1]
    rows, cols = (min(most, n & -n) for most, n in ((cut.rows, high), (cut.cols, broad)))
    room = cut.rows // rows if blocks.shape[1] <= k.shape[1] else 1
    share = max(n for n in range(1, group + 1) if group % n == 0 and triton.next_power_of_2(n) <= room)
    pack, (dim, out) = triton.next_power_of_2(share), (q.shape[-1], v.shape[-1])
    d, e = (max(16, triton.next_power_of_2(n)) for n in (dim, out))
    inside, dense = k.shape[2] % broad == 0 and (d, e) == (dim, out), k.is_contiguous() and v.is_contiguous()
    return {
        "HIGH": high, "BROAD": broad, "SHARE": share, "PACK": pack, "TALL": rows * pack, "COLS": cols, "D": d, "E": e,
        "INSIDE": inside, "TMA": cut.tma and inside and dense and _copies(q.device),
        "EXACT": "ieee" if q.dtype == torch.float32 else "tf32",
    }  # fmt: skip


def _described(how: dict[str, Any], high: str, *xs: Tensor) -> list[Any]:
    """For the unit that copies tiles, if it does: a matrix of all rows, and the tile."""
    if not how["TMA"]:
        return list(xs)
    return [TensorDescriptor.from_tensor(x.view(-1, x.shape[-1]), [how[high], x.shape[-1]]) for x in xs]


@lru_cache
def _copies(device: torch.device) -> bool:
    """Whether there is such a unit: from Hopper on, and in the interpreter."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] >= 9


def _numbers(
    q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, scale: float, window: int, cap: float
) -> tuple[float, ...]:
    strides = (n for t in (q, k, v) for n in t.stride()[:3])
    sizes = q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3]
    return *strides, *sizes, *blocks.shape[2:], *blocks.shape[:2], scale, window or FOREVER, cap
