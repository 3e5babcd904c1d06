"""feedback: inputs of a map are settled one after the other, and those to come make up for what each has lost."""

from jaxtyping import Bool, Float
from torch import Tensor

from fewer.kernels import backend_of, load


def feedback(
    v: Float[Tensor, "in out"],
    u: Float[Tensor, "in in"],
    price: Float[Tensor, " in"],
    keep: Bool[Tensor, "in out"],
    n: int = 0,
    m: int = 0,
) -> tuple[Float[Tensor, "in out"], Bool[Tensor, "in out"]]:
    """`v` as it has become, and what is kept: v_k - sum over j < k of u_jk lost_j, where lost_j is 0 if kept, else v_j / u_jj.

    With `m`, `keep` is not asked: of each `m` inputs, once those before have settled, each output keeps the `n` where
    v_j^2 price_j is largest; of equals the earlier. For few inputs (a leaf of SparseGPT's recursion): the work grows with
    their square.
    """
    return load("feedback", backend_of(v))(v, u, price, keep, n, m)
