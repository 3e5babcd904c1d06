"""2:4 as torch's own `SparseSemiStructuredTensor` holds it, there and back."""

import warnings

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensor, SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from fewer.core import budget
from fewer.layout import Nm
from fewer.select import select

DTYPES = (torch.bfloat16, torch.float16, torch.int8)


def to_semi_structured(packed: Nm) -> SparseSemiStructuredTensor:
    """The same weights for torch's CUTLASS kernels, on the device where they are; a CPU converts but cannot multiply.

    The survivors are ours, in our order; the two bits for each are put where CUTLASS wants them. Raises `ValueError` for
    anything but 2:4, for dtypes without such kernels, and for shapes that do not fill their tiles (rows by 32, by 16 for
    int8, and columns by 64, by 128 for int8).
    """
    if (packed.n, packed.m) != (2, 4):
        raise ValueError(f"torch knows 2:4 and this is {packed.n}:{packed.m}")
    if packed.value.dtype not in DTYPES:
        raise ValueError(f"torch's 2:4 takes bfloat16, float16 and int8, not {packed.value.dtype}: convert it first")
    small = packed.value.dtype == torch.int8
    if packed.shape[0] % (16 if small else 32) or packed.shape[1] % (128 if small else 64):
        raise ValueError(f"{packed.shape} does not fill tiles of {'16x128' if small else '32x64'}, which torch needs")
    places = sparse_semi_structured_from_dense_cutlass(packed.keep().to(packed.value.dtype))[1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructuredTensor")
        return SparseSemiStructuredTensorCUTLASS(
            torch.Size(packed.shape),
            packed=packed.value,
            meta=places,
            packed_t=None,
            meta_t=None,
            compressed_swizzled_bitmask=None,
        )


def from_semi_structured(w: SparseSemiStructuredTensor) -> Nm:
    """What torch holds as one of our layouts, bit for bit.

    CUTLASS' own places are read, kept zeros among them; cuSPARSELt's are its secret, so there the values are asked, and
    a zero that fills up a group takes the lowest place.
    """
    if isinstance(w, SparseSemiStructuredTensorCUTLASS) and w.packed is not None and w.meta is not None:
        value = w.packed[:, : w.shape[1] // 2]
        keep = sparse_semi_structured_to_dense_cutlass(torch.ones_like(value), w.meta) != 0
        return Nm(value, Nm.pack(keep, keep, m=4).place, 2, 4, (w.shape[0], w.shape[1]))
    dense: Shaped[Tensor, "rows cols"] = w.to_dense()
    return Nm.pack(dense, select(dense.abs().float(), budget("2:4")), m=4)
