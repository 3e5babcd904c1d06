"""What a stored map costs to run, beside what it would cost plain and small; and the layout that runs fastest."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from fewer.layout import Bitmask, Csr, Dense, Layout, Nm, Tiles

from ._costs import at_batch, profile
from .sparse_linear.cost import Product, estimate, kind

TALL = (16, 8, 4)  # tiles that fill vectors


@dataclass(frozen=True)
class Weighed:
    """One map for some tokens. `seconds` are estimates from measured costs, `floor` is bytes over bandwidth; 0: unknown.

    `plain` is a dense weight of eight bits (int8 on a CPU, fp8 on a GPU): what is to be beaten.

    >>> print(Weighed("nm", 9.0, 0.0010, 0.0046, "int8", 0.0028))
    nm: 9.0 bits a weight, 4.6 ms (its bytes alone 1.0 ms); dense int8 (8 bits, 2.8 ms) is smaller and faster
    """

    layout: str
    bits: float
    floor: float
    seconds: float
    plain: str
    plain_seconds: float

    @property
    def advice(self) -> str | None:
        """Says so when the plain weight would be smaller or faster."""
        better = [word for word, is_so in (("smaller", self.bits > 8), ("faster", self._slower)) if is_so]
        return f"dense {self.plain} (8 bits, {_ms(self.plain_seconds)}) is {' and '.join(better)}" if better else None

    @property
    def _slower(self) -> bool:
        return bool(self.plain_seconds) and self.seconds > self.plain_seconds

    def __str__(self) -> str:
        said = f"{self.layout}: {self.bits:.1f} bits a weight, {_ms(self.seconds)} (its bytes alone {_ms(self.floor)})"
        return f"{said}; {self.advice}" if self.advice else said

    def as_dict(self) -> dict[str, str | float]:
        return asdict(self)


def weigh(w: Layout, tokens: int = 1, dtype: torch.dtype = torch.float32) -> Weighed:
    """The cost of multiplying so many tokens of `dtype` by a stored map.

    >>> from fewer.layout import Bitmask
    >>> w = torch.randn(64, 64).bfloat16()
    >>> weigh(Bitmask.pack(w, w > 0)).plain
    'int8'
    """
    (rows, cols), cuda = w.shape, next(iter(w.tensors().values())).is_cuda
    read = _bandwidth(cuda)
    product = kind(torch.empty(tokens, cols, dtype=dtype, device="meta"), w)
    mine = 0.0 if product is None else seconds_of(replace(product, cuda=cuda))
    plain = Product("dense", rows, cols, rows * cols, torch.int8, dtype, tokens, cuda)
    dense = (rows * cols / read if read else 0.0) if cuda else _int8(plain)
    bits, floor = 8 * w.bytes / max(rows * cols, 1), w.bytes / read if read else 0.0
    return Weighed(w.name, bits, floor, mine, "fp8" if cuda else "int8", dense)


def seconds_of(p: Product) -> float:
    """The least of the estimates for what can run; 0 if nothing was measured."""
    return min((s for b, s in estimate(p).items() if b != "never packed"), default=0.0)


def _int8(p: Product) -> float:
    """The faster of torch's int8 linear and ours, of what was measured; 0 if neither was."""
    found = profile(p.cuda)
    costs = found[1].get("sparse_linear", {}) if found else {}
    torch_takes = costs.get("linear", {}).get("qint8")
    known = [costs["launch"] + at_batch(torch_takes, p.batch)[0] * p.places] if torch_takes else []
    known += [seconds_of(p)] if "int8" in costs.get("layouts", {}).get("dense", {}) else []
    return min(known, default=0.0)


def fastest(
    x: Shaped[Tensor, "rows cols"],
    keep: Bool[Tensor, "rows cols"],
    tokens: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Layout:
    """The layout in which this pattern runs fastest by measured costs, `Dense` if no other is faster.

    Beside `fewer.layout.smallest`, which counts bytes. Without measured costs: `Dense`.

    >>> w = torch.randn(64, 64).bfloat16()
    >>> fastest(w, torch.ones(64, 64, dtype=torch.bool)).name
    'dense'
    """
    (rows, cols), kept = x.shape, int(keep.sum())

    def product(layout: str, numel: int) -> Product:
        return Product(layout, rows, cols, numel, x.dtype, dtype, tokens, x.is_cuda)

    ways: list[tuple[float, Callable[[], Layout]]] = [
        (seconds_of(product("dense", rows * cols)), lambda: Dense.pack(x, keep)),
        (seconds_of(product("csr", kept)), lambda: Csr.pack(x, keep)),
        (seconds_of(product("bitmask", kept)), lambda: Bitmask.pack(x, keep)),
    ]
    if (height := next((h for h in TALL if _whole(keep, h)), None)) is not None:
        ways.append((seconds_of(product("tiles", kept)) * 16 / height, lambda: Tiles.pack(x, keep, height)))
    if cols % 4 == 0 and bool((keep.unflatten(1, (-1, 4)).sum(-1, dtype=torch.int8) == 2).all()):
        ways.append((seconds_of(product("nm", kept)), lambda: Nm.pack(x, keep, 4)))
    known = [way for way in ways if way[0]] or ways[:1]
    return min(known, key=lambda way: way[0])[1]()


def _whole(keep: Bool[Tensor, "rows cols"], height: int) -> bool:
    if not len(keep) or len(keep) % height:
        return False
    units = keep.unflatten(0, (-1, height))
    return bool((units == units[:, :1]).all())


def _bandwidth(cuda: bool) -> float:
    found = profile(cuda)
    here = found[1]["machine"] if found and "machine" in found[1] else {}
    return float(here.get("read_bytes_per_second") or here.get("copy_bytes_per_second") or 0)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds else "not measured"
