"""attend_pages: a few queries read the pages of keys and values that a table names, each key-value head its own."""

from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels import backend_of, load

from . import ref


def attend_pages(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "pages page dim"],
    v: Float[Tensor, "pages page out"],
    at: Int32[Tensor, "pages page"],
    table: Int32[Tensor, "batch kv_heads reads"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
    bias: Float[Tensor, "batch heads slots"] | None = None,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    """softmax(scale q.k) v over the slots that may be read, and the logarithm of the softmax's denominator (natural).

    Head h reads the pages `table[b, h // (heads / kv_heads)]`; -1 names none, and each page stands there at most once. A slot
    is read by the query at `now` if 0 <= at <= now and, with a `window`, at > now - window. `at` = -1 is an empty slot, so
    last pages may be partly filled. `cap` > 0 bounds scores: cap tanh(score / cap). Who may read nothing gets 0, and
    -inf. Arithmetic is in float32 at least, however keys and values are stored; two results over disjoint pages merge by
    their logarithms. A `bias` is added to the scores of the slots, in the table's order, -inf for who is not read; then `ref` does it.

    Two keys on one page, both readable, the query along the first of them:

    >>> import torch
    >>> k = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> v, at = torch.tensor([[[4.0], [0.0]]]), torch.tensor([[0, 1]], dtype=torch.int32)
    >>> table, now = torch.zeros(1, 1, 1, dtype=torch.int32), torch.ones(1, 1, dtype=torch.int32)
    >>> q = torch.tensor([[[[1.0986, 0.0]]]])  # log 3: three quarters for the first
    >>> out, lse = attend_pages(q, k, v, at, table, now, scale=1.0)
    >>> print(f"{out.item():.2f} {lse.exp().item():.2f}")
    3.00 4.00
    """
    if bias is not None:
        return ref.attend_pages(q, k, v, at, table, now, scale, window, cap, bias)
    return load("attend_pages", backend_of(q, k, v))(q, k, v, at, table, now, scale, window, cap)
