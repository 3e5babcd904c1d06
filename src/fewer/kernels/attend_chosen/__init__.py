"""attend_chosen: every query reads the blocks of keys and values that it chose, all heads of its group the same."""

from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels import backend_for, load


def attend_chosen(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    v: Float[Tensor, "batch kv_heads keys out"],
    index: Int32[Tensor, "batch kv_heads queries reads"],
    block: int,
    at: Int32[Tensor, "batch kv_heads keys"],
    now: Int32[Tensor, "batch queries"],
    scale: float,
    window: int = 0,
    cap: float = 0.0,
) -> tuple[Float[Tensor, "batch heads queries out"], Float[Tensor, "batch heads queries"]]:
    """softmax(scale q.k) v over the blocks of `block` keys that `index` names, and the logarithm of the softmax's denominator (natural).

    `index` holds numbers of blocks in any order; -1 names none, and no query names a block twice. With `block` 1 it names keys. Of
    a block, the query at `now` reads the key at `at` if 0 <= at <= now and, with a `window`, at > now - window: so the newest block is
    read as far as it is past. `cap` > 0 bounds scores: cap tanh(score / cap). Who may read nothing gets 0, and -inf. Arithmetic is
    in float32 at least, softmax included. All of q, k and v have gradients, from both results, the same at every run.

    Two queries, blocks of one key: the first reads key 0, the second reads key 1 alone.

    >>> import torch
    >>> x, v = torch.zeros(1, 1, 2, 4), torch.tensor([[[[1.0], [2.0]]]])
    >>> index, place = torch.tensor([[[[0, -1], [1, -1]]]], dtype=torch.int32), torch.arange(2, dtype=torch.int32)
    >>> out, lse = attend_chosen(x, x, v, index, 1, place[None, None], place[None], scale=0.5)
    >>> out.flatten().tolist(), lse.flatten().tolist()
    ([1.0, 2.0], [0.0, 0.0])
    """
    backend = backend_for("attend_chosen", q, k, v)
    return load("attend_chosen", backend)(q, k, v, index, block, at, now, scale, window, cap)
