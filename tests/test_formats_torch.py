"""Layouts beside those of scipy and torch: the same values at the same places, there and back."""

import pytest
import scipy.sparse
import torch
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from fewer.layout import Bsr, Csr, Nm
from fewer.models.semi_structured import from_semi_structured, to_semi_structured

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor"),
]


def matrix(rows=37, cols=53, keep=0.3, unit=(1, 1), seed=0):
    torch.manual_seed(seed)
    mask = (torch.rand(rows // unit[0], cols // unit[1]) < keep).repeat_interleave(unit[0], 0)
    mask = mask.repeat_interleave(unit[1], 1)
    return torch.randn(mask.shape) * mask, mask


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
def test_csr_is_scipys_and_torchs(keep):
    w, mask = matrix(keep=keep)
    ours, theirs, torchs = Csr.pack(w, mask), scipy.sparse.csr_matrix(w.numpy()), w.to_sparse_csr()
    assert ours.value.tolist() == theirs.data.tolist() == torchs.values().tolist()
    assert ours.column.tolist() == theirs.indices.tolist() == torchs.col_indices().tolist()
    assert ours.start.tolist() == theirs.indptr.tolist() == torchs.crow_indices().tolist()


@pytest.mark.parametrize("unit", [(2, 2), (4, 8), (16, 1)])
def test_bsr_is_scipys_and_torchs(unit):
    w, mask = matrix(48, 64, unit=unit)
    ours, theirs, torchs = (
        Bsr.pack(w, mask, unit),
        scipy.sparse.bsr_matrix(w.numpy(), blocksize=unit),
        w.to_sparse_bsr(unit),
    )
    theirs.sort_indices()
    assert torch.equal(ours.value, torch.from_numpy(theirs.data)) and torch.equal(ours.value, torchs.values())
    assert ours.column.tolist() == theirs.indices.tolist() == torchs.col_indices().tolist()
    assert ours.start.tolist() == theirs.indptr.tolist() == torchs.crow_indices().tolist()


def two_of_four(rows, cols, dtype, zeros=False):
    torch.manual_seed(1)
    keep = torch.rand(rows, cols).unflatten(1, (-1, 4)).argsort(-1).argsort(-1).flatten(1) < 2
    w = torch.randint(1, 100, (rows, cols)).to(dtype)
    if zeros:
        w[::3, ::5] = 0  # survivors that are zero
    return w * keep, keep


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
def test_two_of_four_is_what_torch_makes_of_the_dense_matrix(dtype):
    w, keep = two_of_four(64, 256, dtype)
    theirs = to_semi_structured(Nm.pack(w, keep, m=4))
    packed, meta = sparse_semi_structured_from_dense_cutlass(w)
    assert torch.equal(theirs.packed, packed) and torch.equal(theirs.meta, meta)
    assert isinstance(theirs, SparseSemiStructuredTensorCUTLASS) and torch.equal(theirs.to_dense(), w)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("zeros", [False, True])
def test_two_of_four_comes_back_from_torch_bit_for_bit(dtype, zeros):
    w, keep = two_of_four(64, 256, dtype, zeros)
    again = from_semi_structured(to_semi_structured(Nm.pack(w, keep, m=4)))
    assert torch.equal(again.dense(), w) and torch.equal(again.keep(), keep)


def test_values_alone_are_enough(monkeypatch):
    """cuSPARSELt's tensor tells its values and not its places."""
    w, _ = two_of_four(64, 64, torch.bfloat16, zeros=True)
    parts = dict.fromkeys(("meta", "packed_t", "meta_t", "compressed_swizzled_bitmask"))
    theirs = SparseSemiStructuredTensorCUSPARSELT(w.shape, packed=w, **parts)
    monkeypatch.setattr(SparseSemiStructuredTensorCUSPARSELT, "to_dense", lambda self: w)
    again = from_semi_structured(theirs)
    assert torch.equal(again.dense(), w) and (again.keep() >= (w != 0)).all()


@pytest.mark.parametrize(
    "rows, cols, m, dtype, says",
    [
        (64, 64, 4, torch.float32, "bfloat16, float16 and int8"),
        (48, 64, 4, torch.bfloat16, "does not fill tiles of 32x64"),
        (64, 64, 8, torch.bfloat16, "this is 4:8"),
    ],
)
def test_what_torch_cannot_hold_is_refused(rows, cols, m, dtype, says):
    w, keep = two_of_four(rows, cols, dtype)
    with pytest.raises(ValueError, match=says):
        to_semi_structured(Nm.pack(w, keep, m=m))
