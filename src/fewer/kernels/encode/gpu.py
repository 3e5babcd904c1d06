"""encode with Triton: the product some rows at a time, then the k best of each row from the few groups that can hold them."""

import torch
import triton
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from fewer.kernels.places.gpu import places
from fewer.kernels.top_k.gpu import top_k

from . import _gpu

HELD = 8192  # candidates that one program ranks in registers
AT_ONCE = 1 << 28  # pre-activations in memory at a time
GROUPS = (32, 64, 16, 8, 128)  # sizes of a group, the first that fits is taken
LANES = 32  # candidates of a lane: few warps wait for each other


def encode(
    x: Float[Tensor, "rows in"], w: Float[Tensor, "size in"], b: Float[Tensor, " size"], k: int, by_size: bool
) -> tuple[Int64[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    index = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    value = torch.empty(len(x), k, dtype=x.dtype, device=x.device)
    some = max(1, AT_ONCE // max(1, len(w)))
    for first in range(0, len(x), some):
        part = slice(first, first + some)
        _rows(x[part], w, b, by_size, index[part], value[part])
    return index, value


def _rows(x: Tensor, w: Tensor, b: Tensor, by_size: bool, index: Tensor, value: Tensor) -> None:
    n, k = len(w), index.shape[1]
    group = group_of(n, k)
    pre = F.linear(x, w, b)
    if group:
        best(pre, by_size, index, value, group)
        return
    index.copy_(places(top_k(pre.abs() if by_size else pre, k), k))
    value.copy_(pre.gather(1, index))


def group_of(n: int, k: int) -> int:
    """Neighbours that make a group: 1 if all can be ranked at once, 0 if there is no size that lets k groups be."""
    if n <= HELD:
        return 1
    return next((g for g in GROUPS if triton.next_power_of_2(k) * g <= HELD and k <= triton.cdiv(n, g) <= HELD), 0)


def best(pre: Tensor, by_size: bool, index: Tensor, value: Tensor, group: int, top: Tensor | None = None) -> None:
    """Write the k best of each row; `top` if the groups' highest keys are known."""
    (rows, n), k = pre.shape, index.shape[1]
    if not rows:
        return
    kind = torch.int16 if pre.element_size() == 2 else torch.int32
    bits, how = pre.view(kind), {"BY_SIZE": by_size, "WIDTH": 8 * pre.element_size()}
    groups = triton.cdiv(n, group)
    found = torch.empty(rows, k if group > 1 else 0, dtype=torch.int32, device=pre.device)
    if group > 1:
        if top is None:
            top = torch.empty(rows, groups, dtype=kind, device=pre.device)
            wide = min(8192 // group, triton.next_power_of_2(groups))
            _gpu.maxima[(rows, triton.cdiv(groups, wide))](
                bits, top, n, groups, GROUP=group, GROUPS=wide, num_warps=8, **how
            )
        block = triton.next_power_of_2(groups)
        _gpu.choose[(rows,)](top, found, groups, k, WIDTH=how["WIDTH"], BLOCK=block, num_warps=_warps(block))
    many = k if group > 1 else n
    block = triton.next_power_of_2(many) * group
    _gpu.pick[(rows,)](
        bits, found, index, value.view(kind), n, k, many,
        GROUP=group, BLOCK=block, ALL=group == 1, num_warps=_warps(block), **how,
    )  # fmt: skip


def _warps(block: int) -> int:
    return min(8, max(1, block // (32 * LANES)))
