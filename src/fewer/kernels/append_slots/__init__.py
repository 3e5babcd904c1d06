"""append_slots: one new key and value of every head are put behind those that lie in its pages."""

from jaxtyping import Float, Int, Int32, Shaped
from torch import Tensor

from fewer.kernels import backend_of, load


def append_slots(
    k: Float[Tensor, "batch kv_heads 1 dim"],
    v: Float[Tensor, "batch kv_heads 1 out"],
    at: Int32[Tensor, "batch 1"],
    keys: Shaped[Tensor, "pages page dim"],
    values: Shaped[Tensor, "pages page out"],
    places: Int32[Tensor, "pages page"],
    table: Int32[Tensor, "batch kv_heads reads"],
    end: Int[Tensor, "batch kv_heads"],
) -> None:
    """In place: slot `end` of each head, counted through the pages that `table` names, becomes `k`, `v` and `at`; `end` is one more.

    >>> import torch
    >>> pools, end = (torch.zeros(2, 2, 1), torch.zeros(2, 2, 1), torch.zeros(2, 2, dtype=torch.int32)), torch.tensor([[2]])
    >>> new = torch.tensor([[[[5.0]]]])
    >>> append_slots(new, new, torch.tensor([[7]], dtype=torch.int32), *pools, torch.tensor([[[1, 0]]], dtype=torch.int32), end)
    >>> pools[0].flatten(), pools[2].flatten(), end
    (tensor([5., 0., 0., 0.]), tensor([7, 0, 0, 0], dtype=torch.int32), tensor([[3]]))
    """
    state = keys, values, places, end
    result = load("append_slots", backend_of(k))(k, v, at, *state[:3], table, end)
    for old, new in zip(state, result, strict=True):
        if new is not old:
            old.copy_(new)
