"""The lists of a transposed block matrix, with Triton: which blocks of queries read each block of keys, ascending."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fewer.layout import Blocks


@triton.jit
def _mark(some_count, some_index, full_count, full_index, kinds, rows, cols, COLS: tl.constexpr):
    """One row of blocks: 1 or 2 where it reads, each in the line of its column."""
    row, each = tl.program_id(0).to(tl.int64), tl.arange(0, COLS)
    here = kinds + (row // rows * cols) * rows + row % rows
    some, full = each < tl.load(some_count + row), each < tl.load(full_count + row)
    col = tl.load(some_index + row * cols + each, mask=some, other=0).to(tl.int64)
    tl.store(here + col * rows, tl.full([COLS], 1, tl.int8), mask=some)
    col = tl.load(full_index + row * cols + each, mask=full, other=0).to(tl.int64)
    tl.store(here + col * rows, tl.full([COLS], 2, tl.int8), mask=full)


@triton.jit
def _list(kinds, some_count, some_index, full_count, full_index, rows, ROWS: tl.constexpr):
    """One column: who reads it."""
    col, row = tl.program_id(0).to(tl.int64), tl.arange(0, ROWS)
    kind = tl.load(kinds + col * rows + row, mask=row < rows, other=0)
    some, full = (kind == 1).to(tl.int32), (kind == 2).to(tl.int32)
    tl.store(some_index + col * rows + tl.cumsum(some, 0) - 1, row, mask=kind == 1)
    tl.store(full_index + col * rows + tl.cumsum(full, 0) - 1, row, mask=kind == 2)
    tl.store(some_count + col, tl.sum(some, 0))
    tl.store(full_count + col, tl.sum(full, 0))


def by_columns(blocks: Blocks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How many of each column are read in part, and which; how many whole, and which."""
    batch, heads, rows, cols = blocks.shape
    lists = blocks.kv_num_blocks, blocks.kv_indices, blocks.full_kv_num_blocks, blocks.full_kv_indices
    device = lists[0].device
    kinds = torch.zeros(batch, heads, cols, rows, dtype=torch.int8, device=device)
    _mark[(batch * heads * rows,)](
        *(t.contiguous() for t in lists), kinds, rows, cols, COLS=triton.next_power_of_2(cols)
    )
    counts = [torch.empty(batch, heads, cols, dtype=torch.int32, device=device) for _ in range(2)]
    index = [torch.empty(batch, heads, cols, rows, dtype=torch.int32, device=device) for _ in range(2)]
    out = counts[0], index[0], counts[1], index[1]
    _list[(batch * heads * cols,)](kinds, *out, rows, ROWS=triton.next_power_of_2(rows))
    return out
