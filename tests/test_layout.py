"""Layouts of matrices against decoders written as loops, scipy, numpy and torch's own sparse tensors."""

import math

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import (
    DTYPES,
    EXACT,
    FLAT,
    a_matrix,
    bytes_by_hand,
    dtypes,
    flags,
    masked,
    matrix,
    quick,
    read_by_hand,
    reloaded,
    same_bits,
    seeds,
)

from fewer.core import budget
from fewer.layout import (
    Bitmask,
    Blocks,
    Bsr,
    Codes,
    Csr,
    Delta,
    Dense,
    Layout,
    Nm,
    Tiles,
    convert,
    find_layout,
    layouts,
    smallest,
)


@pytest.mark.parametrize("kind", EXACT)
@quick
@given(rows=st.integers(1, 19), cols=st.integers(1, 35), seed=seeds, dtype=dtypes)
def test_what_is_packed_comes_back_to_the_bit(kind, rows, cols, seed, dtype):
    x, keep, how = a_matrix(kind, rows, cols, seed, dtype)
    a = kind.pack(x, keep, **how)
    assert torch.equal(a.keep(), keep)
    assert same_bits(a.dense(), masked(x, keep))
    back = reloaded(a)
    assert back.numbers() == a.numbers() and back.shape == tuple(x.shape)
    assert same_bits(back.dense(), a.dense()) and torch.equal(back.keep(), keep)


@pytest.mark.parametrize("kind", EXACT)
@quick
@given(rows=st.integers(1, 19), cols=st.integers(1, 35), seed=seeds)
def test_the_stored_form_is_the_documented_one(kind, rows, cols, seed):
    x, keep, how = a_matrix(kind, rows, cols, seed, torch.int8)
    stored = read_by_hand(kind.pack(x, keep, **how))
    assert set(stored) == {(int(i), int(j)) for i, j in keep.nonzero()}
    assert all(int(v) == int(x[at]) for at, v in stored.items())


@pytest.mark.parametrize("kind", FLAT)
@quick
@given(rows=st.integers(1, 19), cols=st.integers(1, 35), seed=seeds, dtype=dtypes)
def test_bytes_are_those_of_the_formula_and_known_before_packing(kind, rows, cols, seed, dtype):
    x, keep, how = a_matrix(kind, rows, cols, seed, dtype)
    expected = bytes_by_hand(kind, keep, x.element_size(), how)
    assert kind.pack(x, keep, **how).bytes == expected
    assert kind.bytes_for(tuple(x.shape), int(keep.sum()), x.element_size(), **how) == expected


@pytest.mark.parametrize("target", FLAT)
@pytest.mark.parametrize("source", FLAT)
@quick
@given(rows=st.integers(1, 9), groups=st.integers(1, 5), seed=seeds)
def test_every_layout_converts_to_every_other(source, target, rows, groups, seed):
    make = torch.Generator().manual_seed(seed)
    keep = (torch.rand(rows, groups, 4, generator=make).argsort(-1).argsort(-1) < 2).flatten(1)
    keep = keep.repeat_interleave(2, 0)  # 2:4, in tiles of 2x1: all of them can hold it
    x = matrix(keep.shape, torch.bfloat16, make)
    x[x == 0] = 1  # Dense forgets kept zeros
    b = convert(convert(Bitmask.pack(x, keep), source), target)
    assert type(b) is target
    assert same_bits(b.dense(), masked(x, keep)) and torch.equal(b.keep(), keep)


@pytest.mark.parametrize("kind", FLAT)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 0), (0, 8), (3, 65)])
@pytest.mark.parametrize("full", [False, True])
def test_nothing_everything_and_the_thinnest_matrices_work(kind, shape, full):
    x = torch.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    how = {"m": 1} if kind is Nm and shape[1] % 2 else {}
    a = reloaded(kind.pack(x, torch.full(shape, full), **how))
    how = {f: getattr(a, f) for f in ("m", "height", "unit") if hasattr(a, f)}
    assert a.bytes == kind.bytes_for(shape, math.prod(shape) * full, 4, **how)
    assert torch.equal(a.keep(), torch.full(shape, full))
    assert torch.equal(a.dense(), x * full)


@pytest.mark.parametrize("kind", [*FLAT, Codes, Delta])
def test_views_are_packed_as_their_copies_are(kind):
    make = torch.Generator().manual_seed(0)
    x = torch.randn(3 + 8 * 16, generator=make)[3:].view(16, 8).mT
    keep = torch.rand(3 + 8 * 16, generator=make)[3:].view(8, 4, 4).argsort(-1).argsort(-1).flatten(1) < 2
    keep = torch.cat([torch.ones(3, dtype=torch.bool), keep.flatten()])[3:].view(8, 16)
    a, b = kind.pack(x, keep), kind.pack(x.contiguous(), keep.clone())
    assert torch.equal(a.dense(), x * keep) and torch.equal(a.keep(), keep)
    assert all(same_bits(t, b.tensors()[name]) for name, t in a.tensors().items())


def test_starts_take_eight_bytes_from_two_to_the_31_on():
    rows, kept = 2**16, 2**31
    assert Bitmask.bytes_for((rows, 2**16), kept, 2) == kept * 2 + rows * 2**13 + 8 * (rows + 1)
    assert Csr.bytes_for((rows, 2**16), kept - 1, 2) == (kept - 1) * 4 + 4 * (rows + 1)
    assert Csr.bytes_for((rows, 2**16), kept, 2) == kept * 4 + 8 * (rows + 1)


def test_starts_are_int32_until_the_last_one_does_not_fit():
    from fewer.layout._bits import starts

    for more, dtype in ((0, torch.int32), (1, torch.int64)):
        begin = starts(torch.tensor([3, 2**31 - 4 + more]))
        assert begin.dtype is dtype and begin.tolist() == [0, 3, 2**31 - 1 + more]


def test_bits_of_nothing_are_bytes_of_no_rows_or_no_columns():
    for rows, cols in ((0, 56), (0, 57), (5, 0)):
        mask = Bitmask.pack(torch.zeros(rows, cols), torch.zeros(rows, cols, dtype=torch.bool)).mask
        assert mask.dtype is torch.uint8 and mask.shape == np.packbits(np.zeros((rows, cols), bool), axis=-1).shape


def test_structure_that_is_not_told_is_found():
    keep = torch.zeros(64, 64, dtype=torch.bool)
    keep[16:32, 5] = keep[48:64, 9] = True
    assert Tiles.pack(torch.ones(64, 64), keep).height == 16
    keep = torch.zeros(64, 96, dtype=torch.bool)
    keep[8:16, 32:48] = True
    assert Bsr.pack(torch.ones(64, 96), keep).unit == (8, 16)
    keep = torch.zeros(2, 16, dtype=torch.bool)
    keep[:, ::8] = True
    a = Nm.pack(torch.ones(2, 16), keep)
    assert (a.n, a.m) == (1, 8)


def test_columns_take_two_bytes_up_to_65536_and_four_beyond():
    for cols, dtype in ((65536, torch.uint16), (65537, torch.int32)):
        keep = torch.zeros(2, cols, dtype=torch.bool)
        keep[0, -1] = keep[1, 32768] = True
        x = torch.full((2, cols), 3, dtype=torch.int8)
        for kind in (Csr, Tiles):
            a = kind.pack(x, keep)
            assert a.column.dtype is dtype and a.column.tolist() == [cols - 1, 32768]
            assert torch.equal(a.keep(), keep)
            assert a.bytes == kind.bytes_for((2, cols), 2, 1, **({"height": 1} if kind is Tiles else {}))


def test_two_to_four_costs_nine_bits_a_bfloat16_weight():
    keep = torch.tensor([True, False, True, False]).repeat(32, 64)
    assert Nm.pack(torch.ones(32, 256, dtype=torch.bfloat16), keep).bytes * 8 == 9 * 32 * 256
    assert Nm.bytes_for((32, 256), 32 * 128, 2, 4) * 8 == 9 * 32 * 256


@quick
@given(rows=st.integers(1, 9), cols=st.integers(1, 30), seed=seeds)
def test_bitmask_is_numpy_packbits_and_csr_is_scipy(rows, cols, seed):
    make = torch.Generator().manual_seed(seed)
    keep = flags((rows, cols), make)
    x = torch.randn(rows, cols, generator=make)
    mask = np.packbits(keep.numpy(), axis=-1, bitorder="little")
    assert np.array_equal(Bitmask.pack(x, keep).mask.numpy(), mask)
    a, truth = Csr.pack(x, keep), scipy.sparse.csr_array((x * keep).numpy())
    assert np.array_equal(a.value.numpy(), truth.data)
    assert np.array_equal(a.column.numpy(), truth.indices) and np.array_equal(a.start.numpy(), truth.indptr)


@quick
@given(h=st.integers(1, 4), w=st.integers(1, 4), seed=seeds)
def test_bsr_is_scipy_and_torch(h, w, seed):
    make = torch.Generator().manual_seed(seed)
    keep = flags((3, 5), make).repeat_interleave(h, 0).repeat_interleave(w, 1)
    x = torch.randn(keep.shape, generator=make) * keep
    a, truth = Bsr.pack(x, keep, unit=(h, w)), scipy.sparse.csr_array(x.numpy()).tobsr((h, w))
    truth.sort_indices()
    assert np.array_equal(a.column.numpy(), truth.indices) and np.array_equal(a.start.numpy(), truth.indptr)
    assert np.array_equal(a.value.numpy(), truth.data)


@pytest.mark.filterwarnings("ignore:Sparse (CSR|BSR) tensor support:UserWarning")
def test_to_torch_and_back():
    make = torch.Generator().manual_seed(0)
    keep = flags((3, 4), make, 0.5).repeat_interleave(2, 0).repeat_interleave(4, 1)
    x = torch.randn(keep.shape, generator=make)
    for kind, theirs in ((Csr, torch.sparse_csr), (Bsr, torch.sparse_bsr)):
        a = kind.pack(x, keep)
        t = a.to_torch()
        assert t.layout is theirs and t.col_indices().dtype is torch.int32
        assert torch.equal(t.to_dense(), x * keep)
        b = kind.from_torch(t)
        assert b.numbers() == a.numbers() and b.bytes == a.bytes and torch.equal(b.keep(), keep)
        with pytest.raises(ValueError, match=f"not a {theirs}"):
            kind.from_torch(x)
    assert Csr.from_torch((x * keep).to_sparse_csr()).start.dtype is torch.int32  # torch's default is int64


@quick
@given(seed=seeds, dtype=st.sampled_from(DTYPES), what=st.sampled_from(["any", "nm", "tiles", "bsr"]))
def test_smallest_is_the_smallest_of_all_that_can_be_packed(seed, dtype, what):
    make = torch.Generator().manual_seed(seed)
    density = float(torch.rand((), generator=make))
    if what == "nm":
        keep = (torch.rand(32, 8, 4, generator=make).argsort(-1).argsort(-1) < 2).flatten(1)
    else:
        h, w = {"any": (1, 1), "tiles": (16, 1), "bsr": (16, 16)}[what]
        keep = flags((32 // h, 32 // w), make, density).repeat_interleave(h, 0).repeat_interleave(w, 1)
    x = matrix(keep.shape, dtype, make)
    of = budget("2:4") if what == "nm" else None
    a = smallest(x, keep, of)
    sizes = [kind.pack(x, keep).bytes for kind in FLAT if kind is not Nm or of]
    assert a.bytes == min(sizes)
    assert same_bits(a.dense(), masked(x, keep))
    assert isinstance(a, Dense) or torch.equal(a.keep(), keep)


def test_smallest_knows_the_structures():
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    some = flags((256, 256), torch.Generator().manual_seed(0), 0.5)
    pairs = (torch.rand(256, 64, 4, generator=torch.Generator().manual_seed(0)).argsort(-1).argsort(-1) < 2).flatten(1)
    assert smallest(x, x < 100).name == "dense"
    assert smallest(x, some).name == "bitmask"
    assert smallest(x, x > 2.5).name == "csr"
    assert smallest(x, pairs, budget("2:4")).name == "nm"
    assert smallest(x, pairs).name == "bitmask"
    assert smallest(x, some, budget("2:4")).name == "bitmask"  # a corrector may have left the pattern
    assert smallest(x, some[:16].repeat_interleave(16, 0), budget("50% of 16x1")).name == "tiles"
    assert smallest(x, some[:16, :16].repeat_interleave(16, 0).repeat_interleave(16, 1)).name == "bsr"


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (lambda x, k: Nm.pack(x, k, m=4), "not every group of 4 keeps the same number"),
        (lambda x, k: Nm.pack(x, k, m=3), "do not divide into groups of 3"),
        (lambda x, k: Nm.pack(x, k, m=0), "do not divide into groups of 0"),
        (lambda x, k: Nm.pack(x, k), "not every group"),
        (lambda x, k: Tiles.pack(x, k, height=2), "a unit of 2x1 is kept in part"),
        (lambda x, k: Tiles.pack(x, k, height=3), "4x8 does not divide into units of 3x1"),
        (lambda x, k: Bsr.pack(x, k, unit=(4, 4)), "a unit of 4x4 is kept in part"),
        (lambda x, k: Bsr.pack(x, torch.eye(4, 8) > 0, unit=(2, 2)), "a unit of 2x2 is kept in part"),
        (lambda x, k: Bsr.pack(x, torch.eye(8)[:4] + torch.eye(8)[4:] > 0, unit=(4, 4)), "a unit of 4x4"),
        (lambda x, k: Bsr.pack(x, k, unit=(4, 5)), "does not divide into units of 4x5"),
        (lambda x, k: Delta.at(torch.tensor([3, 1]), torch.ones(2), (4,)), "ascend"),
        (lambda x, k: Delta.between(x, x.half()), "one dtype"),
        (lambda x, k: Delta.pack(x, k).add_(x.mT), "fits a contiguous weight"),
        (lambda x, k: Blocks.pack(x[None, None] * 3, k[None, None]), "a block that is read is 1"),
        (
            lambda x, k: Blocks.pack(k[None, None], k[None, None], (2, 2), (8, 14)),
            r"not 4 x 8 blocks; check the lengths",
        ),
    ],
)
def test_what_cannot_be_stored_is_refused_with_a_reason(pack, message):
    keep = torch.zeros(4, 8, dtype=torch.bool)
    keep[0, 0] = True
    with pytest.raises(ValueError, match=message):
        pack(torch.ones(4, 8), keep)


def test_every_file_is_a_layout_of_its_name():
    plain = [
        "bitmask",
        "blocks",
        "bsr",
        "codes",
        "csr",
        "delta",
        "dense",
        "gaps",
        "nm",
        "quantised",
        "ragged",
        "spqr",
        "tiles",
    ]
    assert layouts() == plain
    for name in layouts():
        kind = find_layout(name)
        assert issubclass(kind, Layout) and kind.name == kind.__name__.lower() == name
    with pytest.raises(LookupError, match="there are: bitmask"):
        find_layout("coo")


def test_layouts_move_between_devices_and_are_frozen():
    x, keep = torch.ones(4, 8), torch.tensor([True, False] * 4).expand(4, 8)
    for kind in (*FLAT, Codes, Delta):
        a = kind.pack(x, keep)
        there = a.to("meta")
        assert {t.device.type for t in there.tensors().values()} == {"meta"}
        assert there.numbers() == a.numbers() and there.bytes == a.bytes and there.shape == (4, 8)
        with pytest.raises(AttributeError):
            a.value = x
