"""What sparse_linear takes, by layout and batch: seconds = launch + kept · a + places · b, with a and b measured."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewer.kernels._costs import at_batch, profile
from fewer.layout import Layout, Quantised

MOST_ON_GPU = 16  # tokens; beyond, the Triton kernels hand over to dense
MANY_ON_GPU = 256  # tokens, from which 2:4 is faster in matrix units


@dataclass(frozen=True)
class Product:
    """The sizes that decide: `kept` weights of `rows` x `cols` in `layout`, stored in `stored`, times `batch` tokens."""

    layout: str
    rows: int
    cols: int
    kept: int
    stored: torch.dtype
    dtype: torch.dtype
    batch: int
    cuda: bool

    @property
    def places(self) -> int:
        return self.rows * self.cols


def seconds(backend: str, x: Tensor, w: Layout, bias: Tensor | None = None) -> dict[str, float]:
    """Estimates for `cpu` or `gpu`, for `dense` (unpacked at each call) and, to compare, for a weight never packed."""
    found = kind(x, w, bias)
    return {} if found is None else estimate(found)


def kind(x: Tensor, w: Layout, bias: Tensor | None = None) -> Product | None:
    """The sizes of these arguments; None for a layout without values."""
    value: Tensor | None = getattr(w, "value", None)
    if value is None:
        return None
    rows, cols = w.shape
    batch = x.numel() // max(cols, 1)
    name = w.name
    if isinstance(w, Quantised) and row_scale(w) is not None and not x.is_cuda:
        name = w.pattern.name  # the kernel of the codes runs
    count = w.count if isinstance(w, Quantised) else value.numel()
    return Product(name, rows, cols, count, value.dtype, x.dtype, batch, x.is_cuda)


def _in_matrix_units(p: Product) -> bool:
    """2:4 with enough tokens for cuSPARSELt."""
    return p.layout == "nm" and 2 * p.kept == p.places and p.batch >= MANY_ON_GPU


def row_scale(w: Layout) -> Tensor | None:
    """The scales of codes that take a byte and have one scale a row: their product, scaled, is the product."""
    if not isinstance(w, Quantised) or w.bits < 8 or w.zero is not None or not isinstance(w.scale, Tensor):
        return None
    return w.scale if w.scale.shape[1] == 1 else None


def estimate(p: Product) -> dict[str, float]:
    """The same from sizes alone. Empty where nothing comparable was measured."""
    if (found := profile(p.cuda)) is None or not p.batch:
        return {}
    costs = found[1].get("sparse_linear", {})
    linear = costs.get("linear", {}).get(_name(p.dtype)) or costs.get("linear", {}).get("float32")
    if linear is None:
        return {}
    product = costs["launch"] + at_batch(linear, p.batch)[0] * p.places
    out = {}
    measured = costs["layouts"].get(p.layout, {})
    table = measured.get(_name(p.stored)) or measured.get("bfloat16")
    if table and p.dtype != torch.float64 and (not p.cuda or p.batch <= MOST_ON_GPU or _in_matrix_units(p)):
        a, b = at_batch(table, p.batch)
        out["gpu" if p.cuda else "cpu"] = costs["launch"] + a * p.kept + b * p.places
    unpack = measured.get("unpack")
    if p.layout == "dense" and (p.stored == p.dtype or not unpack):
        return out | {"dense": product}
    if unpack:
        out["dense"] = product + unpack[0] * p.kept + unpack[1] * p.places
    return out | {"never packed": product}


def examples() -> Iterator[tuple[str, dict[str, float]]]:
    """One layer of a 7B model at several densities and batches, in words and estimates."""
    cuda = torch.cuda.is_available()
    for layout, keep in (("bitmask", 0.5), ("nm", 0.5), ("csr", 0.1), ("tiles", 0.5), ("tiles", 0.3)):
        for batch in (1, 16, 512):
            dtype = torch.bfloat16 if cuda else torch.float32
            p = Product(layout, 8192, 4096, int(8192 * 4096 * keep), torch.bfloat16, dtype, batch, cuda)
            yield f"{layout} at {keep:.0%}, 8192x4096 bfloat16, {batch} token{'s' * (batch > 1)}", estimate(p)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
