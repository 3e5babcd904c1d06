"""Where layouts end: the last size that fits, nothing at all, and what is refused."""

import doctest
import importlib
import math

import jaxtyping
import numpy as np
import pytest
import torch
from layouts import EXACT, FLAT, flags, same_bits

from fewer.layout import Blocks, Bsr, Codes, Csr, Delta, Dense, Nm, Ragged, layouts, smallest


@pytest.mark.parametrize("name", [*layouts(), "_base", "_bits", "_choose"])
def test_worked_examples_work(name):
    failed, tried = doctest.testmod(importlib.import_module(f"fewer.layout.{name}"))
    assert not failed and (tried or name == "_base")


@pytest.mark.parametrize("kind", [*FLAT, Codes, Delta, Ragged, Blocks])
def test_flags_that_fit_only_by_broadcasting_are_refused(kind, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users: no checker
    shape = (2, 3, 4, 4) if kind in (Blocks, Ragged) else (4, 4)
    keep = torch.ones(shape[:-1] if kind is Ragged else shape, dtype=torch.bool)
    with pytest.raises(ValueError, match="give one flag for each"):
        kind.pack(torch.ones(shape), keep[:1])


def test_what_differs_in_shape_has_no_delta_and_no_smallest_layout(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="give one flag for each"):
        Delta.between(torch.ones(4, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match="give one flag for each"):
        smallest(torch.ones(4, 4), torch.ones(1, 4, dtype=torch.bool))


@pytest.mark.parametrize("kind", EXACT)
def test_a_layout_is_equal_to_itself_only(kind):
    x, keep = torch.ones(4, 4), torch.ones(4, 4, dtype=torch.bool)
    a, b = kind.pack(x, keep), kind.pack(x, keep)
    assert a == a and a != b and len({a, b}) == 2


# n in every m


@pytest.mark.parametrize("cols, m", [(8, 4), (6, 2), (16, 8), (32, 16), (64, 32)])
def test_the_group_of_a_pattern_is_found(cols, m):
    keep = torch.arange(cols).expand(3, cols) % m == 0
    if m == 4:
        keep = torch.tensor([False, False, True, True] * 2).expand(3, cols)
    assert Nm.pack(torch.ones(3, cols), keep).m == m


def test_groups_reach_to_256():
    keep = torch.zeros(2, 514, dtype=torch.bool)
    keep[:, [255, 300]] = True
    a = Nm.pack(torch.ones(2, 512), keep[:, :512], m=256)
    assert (a.n, a.place.tolist()) == (1, [[255, 44]] * 2) and torch.equal(a.keep(), keep[:, :512])
    with pytest.raises(ValueError, match="groups of 257; choose an M up to 256"):
        Nm.pack(torch.ones(2, 514), keep, m=257)


def test_a_group_that_is_nowhere_keeps_none():
    for shape in ((0, 8), (5, 0)):
        assert Nm.pack(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)).n == 0


# columns


@pytest.mark.parametrize("cols, dtype", [(2**16, torch.uint16), (2**16 + 1, torch.int32)])
@pytest.mark.filterwarnings("ignore:Sparse (CSR|BSR) tensor support:UserWarning")
def test_columns_from_torch_take_as_few_bytes_as_our_own(cols, dtype):
    start, last = torch.tensor([0, 1]), torch.tensor([cols - 1])
    t = torch.sparse_csr_tensor(start, last, torch.ones(1), (1, cols), check_invariants=False)
    a = Csr.from_torch(t)
    assert a.column.dtype is dtype and a.column.tolist() == [cols - 1] and a.shape == (1, cols)
    t = torch.sparse_bsr_tensor(start, last, torch.ones(1, 1, 2), (1, 2 * cols), check_invariants=False)
    a = Bsr.from_torch(t)
    assert a.column.dtype is dtype and a.column.tolist() == [cols - 1] and a.shape == (1, 2 * cols)


def test_the_columns_of_bsr_are_counted_in_blocks():
    for across, each in ((2**16, 2), (2**16 + 1, 4)):
        assert Bsr.bytes_for((32, 16 * across), 512, 2, (16, 16)) == 512 * 2 + 2 * each + 4 * 3


def test_a_batch_of_matrices_from_torch_is_refused():
    for kind, t in ((Csr, torch.eye(4).to_sparse_csr()), (Bsr, torch.eye(4).to_sparse_bsr((2, 2)))):
        parts = (t.crow_indices(), t.col_indices(), t.values())
        batch = torch.sparse_compressed_tensor(
            *(p.expand(2, *p.shape) for p in parts), (2, 4, 4), layout=t.layout, check_invariants=False
        )
        with pytest.raises(ValueError, match="3-D"):
            kind.from_torch(batch)


# the smallest


def test_a_column_with_few_survivors_is_smallest_dense():
    x = torch.ones(4096, 1).bfloat16()  # starts of rows cost more than the column itself
    keep = torch.rand(4096, 1, generator=torch.Generator().manual_seed(0)) < 0.02
    assert smallest(x, keep).name == "dense" and smallest(x.mT, keep.mT).name == "csr"
    half = flags((1, 64), torch.Generator().manual_seed(0), 0.5)
    assert smallest(torch.ones(1, 64).bfloat16(), half).name == "bitmask"  # 64 columns, not 64 rows


def test_the_smallest_tiles_are_as_tall_as_the_pattern_allows():
    keep = flags((32, 256), torch.Generator().manual_seed(0), 0.3).repeat_interleave(8, 0)
    a = smallest(torch.ones(256, 256).bfloat16(), keep)
    assert (a.name, a.height) == ("tiles", 8)


# codes, ragged rows, deltas


def test_codes_of_no_rows_have_no_slots():
    a = Codes.pack(torch.zeros(0, 5), torch.zeros(0, 5, dtype=torch.bool))
    assert a.index.shape == (0, 0) and a.shape == (0, 5) and a.bytes == 0


@pytest.mark.parametrize("lead", [(3,), (2, 3), (2, 1, 3)])
def test_ragged_rows_have_any_leading_dimensions(lead):
    make = torch.Generator().manual_seed(0)
    x, keep = torch.randn(*lead, 5, 2, generator=make), flags((*lead, 5), make, 0.5)
    a = Ragged.pack(x, keep)
    assert torch.equal(a.lengths(), keep.sum(-1)) and torch.equal(a.keep(), keep)
    assert torch.equal(a.dense(), x * keep[..., None]) and a.place.dtype is torch.int32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8])
def test_a_delta_lies_between_tensors_of_any_width(dtype):
    base = torch.tensor([0.0, 1.0, 2.0, 3.0]).to(dtype)
    tuned = torch.tensor([0.0, 1.0, 7.0, 3.0]).to(dtype)
    change, weight = Delta.between(base, tuned), base.clone()
    assert change.index().tolist() == [2] and change.put_(weight).value.tolist() == [2]
    assert same_bits(weight, tuned)


def test_a_delta_is_written_only_into_its_own_shape_in_order():
    change = Delta.pack(torch.ones(4, 8), torch.eye(4, 8) > 0)
    for weight in (torch.ones(8, 4), torch.ones(8, 4).mT, torch.ones(32)):
        with pytest.raises(ValueError, match="fits a contiguous weight of that shape"):
            change.add_(weight)


# blocks


def test_blocks_are_128_by_128_if_not_told():
    keep = torch.tensor([[[[True, False, True], [True, True, False]]]])
    assert Blocks.pack(keep, keep).block == (128, 128) and Blocks.pack(keep, keep).lengths == (256, 384)
    mask = torch.ones(1, 1, 130, 10, dtype=torch.bool)
    assert Blocks.of_tokens(mask).block == (128, 128) and Blocks.of_tokens(mask).dense().tolist() == [[[[1], [1]]]]


def test_a_block_covers_its_own_rows_and_columns():
    keep = flags((1, 2, 3, 2), torch.Generator().manual_seed(0), 0.5)
    a = Blocks.pack(keep, keep, block=(2, 4))
    assert a.lengths == (6, 8)
    assert all(
        np.array_equal(a.tokens()[0, h].numpy(), np.kron(keep[0, h].numpy(), np.ones((2, 4), bool))) for h in (0, 1)
    )


def test_only_what_is_read_counts():
    x, keep = torch.full((1, 1, 2, 2), 2), torch.tensor([[[[True, False], [False, True]]]])
    x[..., 1, 0] = 1
    assert Blocks.pack(x, keep).dense().tolist() == [[[[2, 0], [0, 2]]]]
    x[..., 0, 0] = 3
    with pytest.raises(ValueError, match="a block that is read is 1"):
        Blocks.pack(x, keep)


def test_a_block_mask_without_whole_blocks_has_none():
    from torch.nn.attention.flex_attention import BlockMask

    count, index = torch.tensor([[[1, 2]]], dtype=torch.int32), torch.tensor([[[[1, 0], [0, 1]]]], dtype=torch.int32)
    a = Blocks.of_block_mask(BlockMask.from_kv_blocks(count, index, BLOCK_SIZE=(16, 32)))
    assert a.dense().tolist() == [[[[0, 1], [1, 1]]]] and a.block == (16, 32)
    assert a.lengths == (32, 64) and math.prod(a.shape) == 4


def test_dense_forgets_zeros_that_were_kept():
    a = Dense.pack(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[True, True, False]]))
    assert a.keep().tolist() == [[False, True, False]] and a.value.tolist() == [[0, 1, 0]]
