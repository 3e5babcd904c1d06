"""adam with Triton: a program owns a row, or a tile of one; its gradient is gathered, used and forgotten in registers."""

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from fewer.kernels.collect.gpu import by_atom, collect, gathered
from fewer.layout import Codes

from . import Move, ref

Rows = Float[Tensor, "size dim"]
HELD = 8192  # columns that one program holds; the gradient of wider rows of length 1 is written down
TILE, LANES, MANY = 256, 256, 4  # columns of a program where rows are free, and of a warp; uses at a time
WHOLE_LANES, WHOLE_MANY = 256, 4  # where a program must hold all of a row


@triton.jit
def _adam(
    w, first, second, start, whose, amount, y, small, scales, dim, keep1, keep2, new1, new2, eps,
    UNIT: tl.constexpr, GIVEN: tl.constexpr, SMALL: tl.constexpr, MANY: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """w -= rate m / (root sqrt(v) + eps), with rate and root, `scales`, lying on the GPU. GIVEN: `y` is the gradient."""
    rate, root = tl.load(scales), tl.load(scales + 1)
    atom, cols = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside, place = cols < dim, atom * dim + cols
    row = tl.load(w + place, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(first + place, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(second + place, mask=inside, other=0.0).to(tl.float32)
    if GIVEN:
        g = tl.load(y + place, mask=inside, other=0.0).to(tl.float32)
    else:
        g = gathered(start, whose, amount, y, atom, cols, dim, MANY, TILE)
    if UNIT:
        g -= tl.sum(g * row, 0) * row
    m = keep1 * m + new1 * g
    v = keep2 * v + new2 * g * g
    row -= rate * m / (root * tl.sqrt(v) + eps)
    if UNIT:
        row /= tl.sqrt(tl.sum(tl.where(inside, row * row, 0.0), 0))
    tl.store(w + place, row.to(w.dtype.element_ty), mask=inside)
    tl.store(first + place, m.to(first.dtype.element_ty), mask=inside)
    tl.store(second + place, v.to(second.dtype.element_ty), mask=inside)
    if SMALL:
        tl.store(small + place, row.to(small.dtype.element_ty), mask=inside)


def adam(
    w: Rows,
    first: Rows,
    second: Rows,
    codes: Codes | None,
    y: Float[Tensor, "rows dim"],
    move: Move,
    small: Rows | None = None,
) -> tuple[Rows, Rows, Rows]:
    if move.unit and w.shape[1] > HELD:
        return ref.adam(w, first, second, None, y if codes is None else collect(codes, y), move)
    state = [t if t.is_contiguous() else t.contiguous() for t in (w, first, second)]
    rows, dim = (1, w.numel()) if codes is None and not move.unit else w.shape
    uses = (w, w, w) if codes is None else by_atom(codes)
    beta1, beta2 = move.betas
    tile = max(16, triton.next_power_of_2(dim))
    lanes, many = (WHOLE_LANES, WHOLE_MANY) if move.unit else (LANES, MANY)
    tile = tile if move.unit else min(tile, TILE)
    if w.numel():
        _adam[(rows, triton.cdiv(dim, tile))](
            *state, *uses, y.contiguous(), w if small is None else small, move.there(w.device), dim,
            beta1, beta2, 1 - beta1, 1 - beta2, move.eps,
            UNIT=move.unit, GIVEN=codes is None, SMALL=small is not None, MANY=many, TILE=tile,
            num_warps=min(16, max(1, tile // lanes)),
        )  # fmt: skip
    return tuple(state)  # type: ignore[return-value]
