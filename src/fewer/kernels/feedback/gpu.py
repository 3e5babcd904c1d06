"""feedback with Triton: a program owns some outputs, and holds the whole leaf of them in registers."""

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float
from torch import Tensor

WIDE = 64  # outputs of a program


@triton.jit
def _line(tile, rows, j):
    """Row `j` of a tile."""
    return tl.sum(tl.where(rows[:, None] == j, tile, 0.0), 0)


@triton.jit
def _feedback(
    v, u, price, keep, out, kept, inputs, outs, step, n, M: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr
):
    rows, cols = tl.arange(0, K), tl.program_id(0) * TILE + tl.arange(0, TILE)
    at = rows[:, None] * outs + cols[None, :]
    inside = (rows < inputs)[:, None] & (cols < outs)[None, :]
    now = tl.load(v + at, mask=inside, other=0.0).to(tl.float32)
    stays = tl.load(keep + at, mask=inside, other=1).to(tl.int32)
    worth = tl.load(price + rows, mask=rows < inputs, other=0.0).to(tl.float32)
    for j in range(inputs):
        if M > 0:
            if j % M == 0:
                cost = now * now * worth[:, None]
                better = tl.zeros([K, TILE], tl.int32)
                for i in tl.static_range(M):
                    other = _line(cost, rows, j + i)[None, :]
                    better += ((other > cost) | ((other == cost) & (j + i < rows)[:, None])).to(tl.int32)
                group = (rows >= j) & (rows < j + M)
                stays = tl.where(group[:, None], (better < n).to(tl.int32), stays)
        back = tl.load(u + j * step + j).to(tl.float32)
        lost = _line(tl.where(stays > 0, 0.0, now), rows, j) / back
        pull = tl.load(u + j * step + rows, mask=(rows > j) & (rows < inputs), other=0.0).to(tl.float32)
        now -= pull[:, None] * lost[None, :]
    tl.store(out + at, now.to(out.dtype.element_ty), mask=inside)
    tl.store(kept + at, stays > 0, mask=inside)


def feedback(
    v: Float[Tensor, "in out"],
    u: Float[Tensor, "in in"],
    price: Float[Tensor, " in"],
    keep: Bool[Tensor, "in out"],
    n: int = 0,
    m: int = 0,
) -> tuple[Float[Tensor, "in out"], Bool[Tensor, "in out"]]:
    v, keep, price, u = (
        v.contiguous(),
        keep.contiguous(),
        price.contiguous(),
        u if u.stride(-1) == 1 else u.contiguous(),
    )
    out, kept = torch.empty_like(v), torch.empty_like(keep)
    grid = (triton.cdiv(v.shape[1], WIDE),)
    k = triton.next_power_of_2(len(v))
    _feedback[grid](v, u, price, keep, out, kept, *v.shape, u.stride(0), n, M=m, K=k, TILE=WIDE)
    return out, kept
