"""Codes, ragged rows, deltas and blocks of attention against loops and torch's own block masks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import dtypes, flags, masked, matrix, quick, reloaded, same_bits, seeds

from fewer.layout import Blocks, Codes, Delta, Ragged


@quick
@given(lead=st.sampled_from([(), (3,), (2, 3)]), n=st.integers(1, 12), seed=seeds, dtype=dtypes)
def test_codes_hold_at_most_k_in_each_row(lead, n, seed, dtype):
    make = torch.Generator().manual_seed(seed)
    x = (torch.randn(*lead, n, generator=make) * 9).to(dtype)
    keep = flags((*lead, n), make) & (x != 0)
    a = reloaded(Codes.pack(x, keep))
    k = int(keep.sum(-1).max())
    assert a.index.shape == (*lead, k) and a.shape == (*lead, n)
    assert torch.equal(a.dense(), masked(x, keep)) and torch.equal(a.keep(), keep)
    assert a.bytes == math.prod(lead) * k * (8 + x.element_size())


def test_codes_add_up_where_an_index_repeats():
    a = Codes(torch.tensor([[1, 1, 0], [2, 2, 2]]), torch.tensor([[1.0, 2.0, 0.0], [5.0, -5.0, 0.0]]), 3)
    assert a.dense().tolist() == [[0, 3, 0], [0, 0, 0]]
    assert a.keep().tolist() == [[False, True, False], [False, False, True]]


@quick
@given(b=st.integers(1, 3), h=st.integers(1, 3), n=st.integers(1, 9), d=st.integers(1, 4), seed=seeds)
def test_ragged_rows_lie_end_to_end_and_pad_back_to_where_they_stood(b, h, n, d, seed):
    make = torch.Generator().manual_seed(seed)
    x, keep = matrix((b, h, n, d), torch.bfloat16, make), flags((b, h, n), make)
    a = reloaded(Ragged.pack(x, keep))
    assert a.start.dtype is torch.int32 and a.lengths().tolist() == keep.sum(-1).tolist()
    row = 0
    for i in range(b):
        for j in range(h):
            at = keep[i, j].nonzero().flatten()
            part = slice(int(a.start[row]), int(a.start[row + 1]))
            assert same_bits(a.value[part], x[i, j, at]) and a.place[part].tolist() == at.tolist()
            row += 1
    assert torch.equal(a.keep(), keep) and same_bits(a.dense(), masked(x, keep[..., None]))
    assert a.bytes == int(keep.sum()) * (2 * d + 4) + 4 * (b * h + 1)


def gaps_by_hand(index):
    codes, last = [], -1
    for i in index:
        skip, last = i - last - 1, i
        codes += [65535] * (skip // 65535) + [skip % 65535]
    return codes


@pytest.mark.parametrize("gap", [0, 1, 65534, 65535, 65536, 131069, 131070, 131071, 200000])
def test_long_gaps_of_a_delta_escape(gap):
    index = [gap, gap + 1, 2 * gap + 2]
    a = Delta.at(torch.tensor(index), torch.tensor([1, 2, 3], dtype=torch.int8), (index[-1] + 5,))
    assert a.gap.tolist() == gaps_by_hand(index)
    assert a.index().tolist() == index and a.dense().nonzero().flatten().tolist() == index
    assert a.bytes == 3 * (1 + 2) + 2 * (2 * (gap // 65535))


@quick
@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=3), seed=seeds, dtype=dtypes)
def test_a_delta_holds_any_shape_and_its_zeros(shape, seed, dtype):
    make = torch.Generator().manual_seed(seed)
    x, keep = matrix(tuple(shape), dtype, make), flags(tuple(shape), make)
    a = reloaded(Delta.pack(x, keep))
    assert same_bits(a.dense(), masked(x, keep)) and torch.equal(a.keep(), keep)
    assert a.gap.tolist() == gaps_by_hand(keep.flatten().nonzero().flatten().tolist())
    assert a.bytes == int(keep.sum()) * (x.element_size() + 2)


@quick
@given(seed=seeds, dtype=dtypes)
def test_what_a_delta_did_is_undone_to_the_bit(seed, dtype):
    make = torch.Generator().manual_seed(seed)
    base, tuned, keep = matrix((5, 6), dtype, make), matrix((5, 6), dtype, make), flags((5, 6), make)
    for write in ("add_", "put_"):
        weight = base.clone()
        old = getattr(Delta.pack(tuned, keep), write)(weight)
        assert same_bits(masked(weight, ~keep), masked(base, ~keep))
        old.put_(weight)
        assert same_bits(weight, base)
    weight = base.clone()
    change = Delta.between(base, masked(tuned, keep) + masked(base, ~keep))
    old = change.put_(weight)
    assert same_bits(weight, masked(tuned, keep) + masked(base, ~keep))
    assert Delta.between(base, base).bytes == 0
    old.put_(weight)
    assert same_bits(weight, base)


def test_a_delta_adds_in_the_wider_dtype_and_rounds_once():
    base = torch.tensor([1.0, 256.0, 3.0]).bfloat16()
    change = torch.tensor([2**-9, 1.001, 0.0])  # 257.001 rounds up to 258; with 1.001 rounded first, 257 ties to 256
    weight = base.clone()
    Delta.pack(change, change != 0).add_(weight)
    expected = (base.double() + change.double()).to(torch.bfloat16)
    assert torch.equal(weight, expected) and weight[1] == 258


def test_a_delta_writes_into_a_parameter_without_gradients():
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    Delta.pack(torch.eye(2), torch.eye(2) == 1).add_(weight)
    assert torch.equal(weight, torch.eye(2)) and weight.grad_fn is None


def causal_window(b, h, q, k):
    return (q >= k) & (q - k < 37 + 20 * h)


@pytest.mark.parametrize(
    ("q", "k", "block"), [(64, 64, (16, 16)), (96, 64, (32, 16)), (50, 70, (16, 32)), (1, 40, (16, 16))]
)
def test_blocks_are_those_of_torchs_create_block_mask(q, k, block):
    from torch.nn.attention.flex_attention import create_block_mask, create_mask

    theirs = create_block_mask(causal_window, 2, 3, q, k, device="cpu", BLOCK_SIZE=block)
    ours = Blocks.of_tokens(create_mask(causal_window, 2, 3, q, k, device="cpu"), block)
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(ours.keep(), theirs.to_dense().bool())
    assert reloaded(ours).block_mask(causal_window).shape == theirs.shape
    again = Blocks.of_block_mask(ours.block_mask(causal_window))
    assert torch.equal(again.dense(), ours.dense()) and again.numbers() == ours.numbers()
    assert ours.bytes == 2 * 4 * (ours.kv_num_blocks.numel() + ours.kv_indices.numel())


def test_attention_over_blocks_is_attention_over_the_mask():
    from torch.nn.attention.flex_attention import create_mask

    make = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 64, 16, generator=make)
    keep = flags((1, 2, 4, 4), make, 0.5) | torch.eye(4, dtype=torch.bool)
    blocks = Blocks.pack(keep, keep, block=(16, 16))
    mask = create_mask(causal_window, 1, 2, 64, 64, device="cpu")
    parts = Blocks.of_tokens(mask & blocks.tokens(), block=(16, 16))
    for some, mod, allowed in ((blocks, None, blocks.tokens()), (parts, causal_window, mask & blocks.tokens())):
        truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        out = attention_by_blocks(q, k, v, some.block_mask(mod))
        torch.testing.assert_close(out, truth)


def attention_by_blocks(q, k, v, block_mask):
    """As compiled flex_attention reads a BlockMask; uncompiled, it reads the mask function only."""
    size = block_mask.BLOCK_SIZE
    pairs = (
        (block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.mask_mod),
        (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, lambda b, h, q, k: True),
    )
    seen = torch.zeros(q.shape[0], q.shape[1], q.shape[2], k.shape[2], dtype=torch.bool)
    for count, index, mod in pairs:
        for b, h, i in np.ndindex(*count.shape):
            for t in range(int(count[b, h, i])):
                for row in range(i * size[0], (i + 1) * size[0]):
                    for col in range(int(index[b, h, i, t]) * size[1], (int(index[b, h, i, t]) + 1) * size[1]):
                        seen[b, h, row, col] = bool(mod(b, h, row, col))
    score = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -float("inf"))
    return score.softmax(-1) @ v


def test_blocks_of_a_selection_are_read_whole():
    keep = torch.tensor([[[[True, False, True]]]])
    a = reloaded(Blocks.pack(keep, keep, block=(1, 16), lengths=(1, 40)))
    assert a.dense().tolist() == [[[[2, 0, 2]]]] and a.full_kv_indices[..., :2].tolist() == [[[[0, 2]]]]
    assert a.tokens()[0, 0, 0].nonzero().flatten().tolist() == [*range(16), *range(32, 40)]
