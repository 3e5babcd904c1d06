"""Gaps against a reader written as a loop, and what it costs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import DTYPES, flags, matrix, quick, reloaded, same_bits, seeds

from fewer.layout import Gaps


def read(g):
    """Walk every row as the format says: skip, take, and where a zero was taken there is nothing."""
    found = {}
    for row in range(g.shape[0]):
        column = -1
        for entry in range(8 * int(g.start[row]), 8 * int(g.start[row + 1])):
            column += (int(g.gap[entry // 2]) >> 4 * (entry % 2) & 15) + 1
            if (value := g.value[entry].item()) != 0:
                found[row, column] = value
    return found


@quick
@given(rows=st.integers(1, 9), cols=st.integers(1, 120), seed=seeds, dtype=st.sampled_from(DTYPES))
def test_what_is_packed_comes_back_but_for_zeros_that_were_kept(rows, cols, seed, dtype):
    make = torch.Generator().manual_seed(seed)
    x, keep = matrix((rows, cols), dtype, make), flags((rows, cols), make)
    g = reloaded(Gaps.pack(x, keep))
    stays = keep & (x != 0)
    assert torch.equal(g.keep(), stays)
    assert same_bits(g.dense(), torch.where(stays, x, torch.zeros_like(x)))


@pytest.mark.parametrize("density", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_the_stored_form_is_the_documented_one(density):
    make = torch.Generator().manual_seed(1)
    x = torch.randint(1, 100, (7, 211), generator=make).float()
    keep = torch.rand(x.shape, generator=make) < density
    g = Gaps.pack(x, keep)
    assert read(g) == {(int(i), int(j)): float(x[i, j]) for i, j in keep.nonzero()}
    entries = [sum(gap // 16 + 1 for gap in gaps(row)) for row in keep]
    assert g.start.tolist() == [sum(-(-n // 8) for n in entries[:i]) for i in range(8)]
    assert g.bytes == sum(-(-n // 8) * 8 for n in entries) * 4.5 + 4 * 8


def gaps(row):
    """Columns skipped before each survivor of a row."""
    at = row.nonzero().flatten().tolist()
    return [b - a - 1 for a, b in zip([-1, *at], at, strict=False)]


def test_a_tenth_of_bfloat16_weights_costs_less_than_their_values_and_a_bit_each():
    make = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4096, generator=make).bfloat16()
    keep = torch.rand(x.shape, generator=make) < 0.1
    assert Gaps.pack(x, keep).bytes * 8 < x.numel() * (0.1 * 16 + 1)
