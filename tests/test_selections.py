"""A selection in other people's forms and back: bit for bit, brute force beside."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewer import layout
from fewer.layout import Blocks


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.floats(0, 1), st.integers(0, 99))
def test_every_form_comes_back(batch, heads, rows, blocks, share, seed):
    keep = torch.rand(batch, heads, rows, blocks, generator=torch.Generator().manual_seed(seed)) < share
    index, count = layout.to_indices(keep, width=3)
    assert index.shape[-1] >= 3 and torch.equal(layout.of_indices(index, blocks), keep)
    assert torch.equal(count, keep.sum(-1).transpose(1, 2).int())
    assert torch.equal(layout.of_bsr(*layout.to_bsr(keep), blocks), keep)
    assert torch.equal(layout.of_columns(*layout.to_columns(keep), rows), keep)
    assert torch.equal(Blocks.of_block_mask(Blocks.pack(keep, keep).block_mask()).keep(), keep)


def test_the_forms_say_what_loops_say():
    keep = torch.rand(2, 2, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    indptr, indices = layout.to_bsr(keep)
    offsets, rows = layout.to_columns(keep)
    by_row = [k for b in keep for h in b for r in h for k in range(5) if r[k]]
    by_key = [r for b in keep for h in b for k in range(5) for r in range(4) if h[r, k]]
    assert indices.tolist() == by_row and rows.tolist() == by_key
    for b in range(2):
        for h in range(2):
            assert indptr[b, h].diff().tolist() == keep[b, h].sum(1).tolist()
            assert offsets[b, h].diff().tolist() == keep[b, h].sum(0).tolist()
    table = torch.arange(20).view(2, 2, 5).int()
    pages = layout.to_pages(keep[:, :, 0], table)
    for b in range(2):
        for h in range(2):
            assert [p for p in pages[b, h].tolist() if p >= 0] == table[b, h][keep[b, h, 0]].tolist()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="numbered 0 to 2"):
        layout.of_indices(torch.tensor([[[[3]]]], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="do not fit"):
        layout.of_bsr(torch.tensor([[[0, 2]]], dtype=torch.int32), torch.tensor([1], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="do not fit"):
        layout.of_bsr(torch.tensor([[[0, 1]]], dtype=torch.int32), torch.tensor([5], dtype=torch.int32), 3)
