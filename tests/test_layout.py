"""Layouts against decoders written as loops, scipy, numpy and torch's own sparse tensors and block masks."""

import json
import math

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    Ragged,
    Tiles,
    convert,
    find_layout,
    layouts,
    smallest,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8]
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
EXACT = [Bitmask, Csr, Nm, Tiles, Bsr]  # 2-D layouts that hold kept zeros
FLAT = [*EXACT, Dense]
quick = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 2**20)
dtypes = st.sampled_from(DTYPES)


def matrix(shape, dtype, make):
    """Random values, and some that trip: zeros, negative zeros, and for floats infinities and NaN."""
    x = (torch.randn(shape, generator=make) * 40).round().to(dtype)
    if dtype.is_floating_point and x.numel():
        odd = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-3]).to(dtype)
        where = torch.rand(shape, generator=make) < 0.3
        x[where] = odd[torch.randint(len(odd), (int(where.sum()),), generator=make)]
    return x


def flags(shape, make, density=None):
    density = torch.rand((), generator=make).mul(1.4).sub(0.2) if density is None else density  # often none or all
    return torch.rand(shape, generator=make) < density


def held_by(kind, rows, cols, make):
    """A pattern, of about this size, that this layout can hold, and how to pack it."""
    if kind is Nm:
        m = [1, 2, 4, 6, 8, 16][int(torch.randint(6, (), generator=make))]
        n = int(torch.randint(m + 1, (), generator=make))
        groups = torch.rand(rows, math.ceil(cols / m), m, generator=make)
        return (groups.argsort(-1).argsort(-1) < n).flatten(1), {"m": m}
    if kind is Tiles or kind is Bsr:
        h, w = (int(torch.randint(1, 5, (), generator=make)) for _ in range(2))
        w = 1 if kind is Tiles else w
        keep = flags((math.ceil(rows / h), math.ceil(cols / w)), make).repeat_interleave(h, 0).repeat_interleave(w, 1)
        return keep, {"height": h} if kind is Tiles else {"unit": (h, w)}
    return flags((rows, cols), make), {}


def a_matrix(kind, rows, cols, seed, dtype):
    make = torch.Generator().manual_seed(seed)
    keep, how = held_by(kind, rows, cols, make)
    return matrix(keep.shape, dtype, make), keep, how


def same_bits(a, b):
    bits = BITS[a.element_size()]
    return (
        a.dtype is b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))
    )


def masked(x, keep):
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


def reloaded(a: Layout) -> Layout:
    return type(a).restore(a.tensors(), json.loads(json.dumps(a.numbers())))


def read_by_hand(a):
    """(row, column) -> value of what is stored, in loops, from the words of each class's docstring."""
    out, bit = {}, lambda row, i: row[i // 8] >> (i % 8) & 1
    if isinstance(a, Bitmask):
        for i, row in enumerate(a.mask.tolist()):
            t = int(a.start[i])
            for j in range(a.shape[1]):
                if bit(row, j):
                    out[i, j], t = a.value[t], t + 1
            assert t == int(a.start[i + 1])
    elif isinstance(a, Csr):
        for i in range(a.shape[0]):
            for t in range(int(a.start[i]), int(a.start[i + 1])):
                out[i, int(a.column[t])] = a.value[t]
    elif isinstance(a, Nm):
        width = math.ceil(math.log2(a.m))
        for i, row in enumerate(a.place.tolist()):
            for t in range(a.value.shape[1]):
                place = sum(bit(row, t * width + b) << b for b in range(width))
                out[i, t // a.n * a.m + place] = a.value[i, t]
    else:
        h, w = (a.height, 1) if isinstance(a, Tiles) else a.value.shape[1:]
        for b in range(a.shape[0] // h):
            for t in range(int(a.start[b]), int(a.start[b + 1])):
                for r in range(h):
                    for c in range(w):
                        out[b * h + r, int(a.column[t]) * w + c] = a.value[t].reshape(h, w)[r, c]
    return out


def bytes_by_hand(kind, keep, item, how):
    (rows, cols), kept = keep.shape, int(keep.sum())
    if kind is Bitmask:
        return kept * item + rows * math.ceil(cols / 8) + 4 * (rows + 1)
    if kind is Csr:
        return kept * (item + 2) + 4 * (rows + 1)
    if kind is Nm:
        in_row = kept // rows
        return kept * item + rows * math.ceil(in_row * math.ceil(math.log2(how["m"])) / 8)
    if kind is Dense:
        return rows * cols * item
    h, w = how.get("unit", (how.get("height"), 1))
    return kept * item + 2 * kept // (h * w) + 4 * (rows // h + 1)


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
    assert layouts() == sorted(["bitmask", "blocks", "bsr", "codes", "csr", "delta", "dense", "nm", "ragged", "tiles"])
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
    change = torch.tensor([2**-9, 1.0078125, 0.0])  # 256 + 1.0078125 rounds up to 258; 256 + bfloat16 steps of 2 ties
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
