"""entmax_attention with Triton: thresholds by Newton's steps over tiles, and a way back that meets only tiles with weight."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewer.kernels.attend_blocks._backward import inner
from fewer.kernels.attend_blocks._columns import by_columns
from fewer.layout import Blocks

from . import _backward, _forward, ref

WIDEST = 256  # a head's numbers that a tile can hold
FOREVER = 2**31 - 1  # no window
STEPS = 30  # of Newton at most; four to six are usual
NEAR = {
    2: (5e-3, 1e-3),
    4: (1e-4, 1e-5),
}  # the last step's length, by bytes of a number, for alpha 1.5 and others: the next would be its square


@dataclass(frozen=True)
class Cut:
    """How the work is cut: queries and keys of a tile; warps and loads under way there, back along rows, back along columns."""

    rows: int
    cols: int
    there: tuple[int, int] = (4, 3)
    back: tuple[int, int] = (8, 2)
    columns: tuple[int, int] = (8, 2)


def cut_of(dim: int, size: int) -> Cut:
    if size > 2 or dim > 128:
        return Cut(64, 32, (4, 2), (4, 2), (4, 2))
    return Cut(128, 64, (8, 3))


@dataclass(frozen=True)
class Task:
    """What is the same for all launches."""

    scale: float
    window: int
    cap: float
    half: bool
    cut: Cut


def entmax_attention(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys out"],
    alpha: float | Float[Tensor, " heads"],
    at: Int32[Tensor, "batch kv_heads keys"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    cut: Cut | None = None,
) -> Float[Tensor, "batch heads queries out"]:
    able = q.dtype == k.dtype == v.dtype != torch.float64 and max(q.shape[-1], v.shape[-1]) <= WIDEST
    largest = float(alpha.detach().max()) if isinstance(alpha, Tensor) else alpha
    if not able or largest > 2 or not all(t.numel() for t in (q, k, v)):
        return ref.entmax_attention(q, k, v, alpha, at, now, scale, window, cap)
    cut = cut or cut_of(max(q.shape[-1], v.shape[-1]), q.element_size())
    task = Task(scale, window, cap, alpha == 1.5 if isinstance(alpha, float) else False, cut)
    each = alpha.float() if isinstance(alpha, Tensor) else torch.full(q.shape[1:2], alpha, device=q.device)
    tensors = (t.contiguous() for t in (q, k, v, each, at, now))
    out: Tensor = _Attend.apply(*tensors, task)
    return out


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, at: Tensor, now: Tensor, task: Task
    ) -> Tensor:
        out, *rest = forward(q, k, v, alpha, at, now, task)
        ctx.save_for_backward(q, k, v, alpha, at, now, out, *rest)
        ctx.task = task
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, alpha, at, now, out, tau, counts, lists = ctx.saved_tensors
        wanted = given.contiguous(), ctx.task, ctx.needs_input_grad[3]
        return *backward(q, k, v, alpha, at, now, out, tau, counts, lists, *wanted), None, None, None


def spans(at: Tensor, now: Tensor, window: int, cut: Cut) -> Tensor:
    """For each tile of queries the first tile of keys that some query may read, and the one after the last."""
    rows, cols = -(-now.shape[1] // cut.rows), -(-at.shape[2] // cut.cols)
    pad = torch.nn.functional.pad
    last = pad(now, (0, rows * cut.rows - now.shape[1]), value=-1).unflatten(1, (rows, -1))
    high = pad(at, (0, cols * cut.cols - at.shape[2]), value=-1).unflatten(2, (cols, -1))
    low = torch.where(high < 0, FOREVER, high).amin(-1)[:, :, None]
    first = torch.where(last < 0, FOREVER, last).amin(-1)[:, None, :, None]
    meets = low <= last.amax(-1)[:, None, :, None]
    if window:
        meets &= high.amax(-1)[:, :, None] > first - window
    each = torch.arange(cols, device=at.device, dtype=torch.int32)
    return torch.stack([torch.where(meets, each, cols).amin(-1), torch.where(meets, each + 1, 0).amax(-1)], -1)


def _sizes(q: Tensor, v: Tensor, task: Task) -> dict[str, Any]:
    d, e = (max(16, triton.next_power_of_2(n)) for n in (q.shape[-1], v.shape[-1]))
    exact, cut = "ieee" if q.dtype == torch.float32 else "tf32", task.cut
    return dict(ROWS=cut.rows, COLS=cut.cols, D=d, E=e, CAP=task.cap > 0, HALF=task.half, EXACT=exact)


def _numbers(q: Tensor, k: Tensor, v: Tensor, lists: int, task: Task) -> tuple[float, ...]:
    sizes = q.shape[1], q.shape[1] // k.shape[1], q.shape[2], k.shape[2], q.shape[3], v.shape[3], lists
    return *sizes, task.scale, task.window or FOREVER, task.cap


def forward(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, at: Tensor, now: Tensor, task: Task
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The result, thresholds, and for each tile of queries how many tiles of keys have weight, and which."""
    (batch, heads, queries), device, cut = q.shape[:3], q.device, task.cut
    tiles, cols = triton.cdiv(queries, cut.rows), triton.cdiv(k.shape[2], cut.cols)
    out = torch.empty(batch, heads, queries, v.shape[-1], dtype=q.dtype, device=device)
    tau = torch.empty(batch, heads, queries, dtype=torch.float32, device=device)
    counts = torch.empty(batch, heads, tiles, dtype=torch.int32, device=device)
    lists = torch.empty(batch, heads, tiles, cols, dtype=torch.int32, device=device)
    near = NEAR[q.element_size()][0 if task.half else 1]
    (warps, stages), span = cut.there, spans(at, now, task.window, cut).int().contiguous()
    _forward.forward[(tiles, batch * heads)](
        q, k, v, at, now, alpha, span, out, tau, counts, lists, *_numbers(q, k, v, cols, task), near, STEPS,
        **_sizes(q, v, task), num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out, tau, counts, lists


def backward(
    q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, at: Tensor, now: Tensor, out: Tensor, tau: Tensor, counts: Tensor,
    lists: Tensor, given: Tensor, task: Task, learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """The gradients of q, k, v and, if it is wanted, alpha."""
    (batch, heads, _, tiles), cut, sizes = (*q.shape[:2], 0, counts.shape[-1]), task.cut, _sizes(q, v, task)
    dq, dk, dv = (torch.empty_like(t) for t in (q, k, v))
    guess, delta, each = (torch.empty_like(tau) for _ in range(3))
    nothing, wide = torch.zeros_like(tau), triton.next_power_of_2(v.shape[-1])
    inner[(triton.cdiv(tau.numel(), 32),)](
        out, given, nothing, guess, tau.numel(), v.shape[-1], TALL=32, E=wide
    )  # fmt: skip
    cols = lists.shape[-1]
    _backward.for_queries[(tiles, batch * heads)](
        q, k, v, at, now, alpha, tau, counts, lists, given, guess, delta, dq, each, *_numbers(q, k, v, cols, task),
        **sizes, ALPHA=learns, num_warps=cut.back[0], num_stages=cut.back[1],
    )  # fmt: skip
    none = torch.zeros_like(counts)
    blocks = Blocks(counts, lists, none, lists, (cut.rows, cut.cols), (tiles * cut.rows, cols * cut.cols))
    turned = by_columns(blocks)[:2]
    _backward.for_keys[(cols, batch * k.shape[1])](
        q, k, v, at, now, alpha, tau, *turned, given, delta, dk, dv, *_numbers(q, k, v, tiles, task),
        **sizes, TALL=min(64, cut.rows), num_warps=cut.columns[0], num_stages=cut.columns[1],
    )  # fmt: skip
    return dq, dk, dv, each.sum((0, 2)) if learns else None
