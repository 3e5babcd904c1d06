"""attend_blocks: many queries read the blocks of keys and values that a `Blocks` names."""

from jaxtyping import Float, Int32
from torch import Tensor

from fewer.kernels import backend_for, load
from fewer.layout import Blocks


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
    """softmax(scale q.k) v over the blocks that are read, and the logarithm of the softmax's denominator (natural).

    `blocks` is `[1 or batch, 1 or kv_heads or heads, query blocks, key blocks]`; its `lengths` are (queries, keys). In a block that is
    read in part, the query at `now` reads the key at `at` if 0 <= at <= now and, with a `window`, at > now - window; a block
    that is read whole is read without asking. `cap` > 0 bounds scores: cap tanh(score / cap). Who may read nothing gets
    0, and -inf. Arithmetic is in float32 at least, softmax included.

    Two queries, two keys, in blocks of one: the second query reads only itself.

    >>> import torch
    >>> x, v = torch.zeros(1, 1, 2, 4), torch.tensor([[[[1.0], [2.0]]]])
    >>> read = Blocks.pack(torch.ones(1, 1, 2, 2).byte(), torch.eye(2, dtype=torch.bool)[None, None], (1, 1))
    >>> place = torch.arange(2, dtype=torch.int32)
    >>> out, lse = attend_blocks(x, x, v, read, place[None, None], place[None], scale=0.5)
    >>> out.flatten().tolist(), lse.flatten().tolist()
    ([1.0, 2.0], [0.0, 0.0])
    """
    return load("attend_blocks", backend_for("attend_blocks", q, k, v))(q, k, v, blocks, at, now, scale, window, cap)
