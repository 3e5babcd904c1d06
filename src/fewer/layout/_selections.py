"""One selection of attention in the forms that other people's kernels take, and back, without loss.

`keep` is `[batch, heads, rows, blocks]`, True where a row (a query, or a block of queries) reads a block of keys. `Blocks` is FlexAttention's and
FlashAttention 4's form of it.
"""

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from .blocks import _order

Keep = Bool[Tensor, "batch heads rows blocks"]


def to_indices(
    keep: Keep, width: int = 0
) -> tuple[Int32[Tensor, "batch rows heads width"], Int32[Tensor, "batch rows heads"]]:
    """Each row's blocks in order, -1 behind them, and how many: NSA's `block_indices` and `block_counts`.

    With one row a query and blocks of one key, of one sequence, it is FlashMLA's, DSA's and vLLM's `[tokens, heads, top k]`. `width`: at
    least so many places.

    >>> index, count = to_indices(torch.tensor([[[[True, False, True], [False, True, False]]]]))
    >>> index[0, :, 0].tolist(), count.flatten().tolist()
    ([[0, 2], [1, -1]], [2, 1])
    """
    count, order = _order(keep.transpose(1, 2))
    wide = max(width, int(count.max()) if count.numel() else 0)
    order = torch.nn.functional.pad(order, (0, max(0, wide - order.shape[-1])))[..., :wide]
    return order.masked_fill(torch.arange(wide, device=keep.device) >= count[..., None], -1), count


def of_indices(index: Int32[Tensor, "batch rows heads width"], blocks: int) -> Keep:
    """The inverse of `to_indices`: -1 names nothing, order does not matter. ValueError for a block there is not.

    >>> of_indices(torch.tensor([[[[0, 2]], [[1, -1]]]], dtype=torch.int32), 3)[0, 0].int().tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    if index.numel() and (int(index.max()) >= blocks or int(index.min()) < -1):
        raise ValueError(
            f"blocks are numbered 0 to {blocks - 1}, or -1 for none; there is {int(index.max())} or {int(index.min())}"
        )
    out = torch.zeros(*index.shape[:3], blocks + 1, dtype=torch.bool, device=index.device)
    out.scatter_(-1, index.long().where(index >= 0, blocks), True)
    return out[..., :blocks].transpose(1, 2).contiguous()


def to_bsr(keep: Keep) -> tuple[Int32[Tensor, "batch heads rows1"], Int32[Tensor, " kept"]]:
    """`indptr`, each (batch, head) from 0, and `indices`, end to end: FlashInfer's block-sparse rows, one after the other.

    >>> indptr, indices = to_bsr(torch.tensor([[[[True, False, True], [False, True, False]]]]))
    >>> indptr.flatten().tolist(), indices.tolist()
    ([0, 2, 3], [0, 2, 1])
    """
    count = keep.sum(-1)
    indptr = torch.nn.functional.pad(count.cumsum(-1), (1, 0))
    return indptr.int(), keep.nonzero()[:, -1].int()


def of_bsr(indptr: Int32[Tensor, "batch heads rows1"], indices: Int32[Tensor, " kept"], blocks: int) -> Keep:
    """The inverse of `to_bsr`. ValueError if the two do not fit.

    >>> of_bsr(torch.tensor([[[0, 2, 3]]], dtype=torch.int32), torch.tensor([0, 2, 1], dtype=torch.int32), 3)[0, 0].int().tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    count = indptr.diff(dim=-1)
    if (
        bool((count < 0).any())
        or int(count.sum()) != len(indices)
        or (len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < blocks)
    ):
        raise ValueError(
            f"indptr counts {int(count.sum())} blocks of {blocks}, and indices names {len(indices)}: they do not fit"
        )
    row = torch.arange(count.numel(), device=indptr.device).repeat_interleave(count.flatten().long())
    out = torch.zeros(count.numel(), blocks, dtype=torch.bool, device=indptr.device)
    out[row, indices.long()] = True
    return out.view(*count.shape, blocks)


def to_columns(keep: Keep) -> tuple[Int32[Tensor, "batch heads blocks1"], Int32[Tensor, " kept"]]:
    """By key: for each block of keys, the rows that read it (k2q CSR; FlashMoBA's `col_offsets` and `row_indices`).

    >>> offsets, rows = to_columns(torch.tensor([[[[True, False], [True, True]]]]))
    >>> offsets.flatten().tolist(), rows.tolist()
    ([0, 2, 3], [0, 1, 1])
    """
    return to_bsr(keep.mT)


def of_columns(offsets: Int32[Tensor, "batch heads blocks1"], rows: Int32[Tensor, " kept"], count: int) -> Keep:
    """The inverse of `to_columns`; `count` rows.

    >>> of_columns(torch.tensor([[[0, 2, 3]]], dtype=torch.int32), torch.tensor([0, 1, 1], dtype=torch.int32), 2)[0, 0].int().tolist()
    [[1, 0], [1, 1]]
    """
    return of_bsr(offsets, rows, count).mT.contiguous()


def to_pages(
    keep: Bool[Tensor, "batch heads blocks"], table: Int32[Tensor, "batch heads blocks"]
) -> Int32[Tensor, "batch heads reads"]:
    """The page table of what is read, for a kernel that reads all of its table: kept pages first, -1 behind them.

    >>> to_pages(torch.tensor([[[True, False, True]]]), torch.tensor([[[7, 8, 9]]], dtype=torch.int32)).tolist()
    [[[7, 9]]]
    """
    count, order = _order(keep)
    order = order[..., : int(count.max()) if count.numel() else 0].long()
    return table.gather(-1, order).masked_fill(~keep.gather(-1, order), -1)


def to_head_kinds(keep: Keep) -> Int64[Tensor, " heads"]:
    """Block-Sparse-Attention's `head_mask_type`: 0 for a head that reads all it may (its past), 1 for one with a mask of blocks, numbered from 1.

    >>> to_head_kinds(torch.tensor([[[[True, False], [True, True]], [[True, False], [False, True]]]])).tolist()
    [0, 1]
    """
    rows, blocks = keep.shape[2:]
    causal = torch.ones(rows, blocks, dtype=torch.bool, device=keep.device).tril(blocks - rows)
    masked = ~(keep | ~causal).flatten(2).all(-1).all(0)
    return torch.where(masked, masked.long().cumsum(0), 0)
