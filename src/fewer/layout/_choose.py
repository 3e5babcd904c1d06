"""From one layout to another, and the smallest that holds a given pattern."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from fewer.core import Budget

from ._base import Layout
from ._bits import common_unit, same_shape
from ._grid import Grid
from .bitmask import Bitmask
from .bsr import Bsr
from .csr import Csr
from .dense import Dense
from .nm import Nm, kept_of
from .quantised import How, Quantised
from .spqr import Spqr
from .tiles import Tiles

Kind = TypeVar("Kind", bound=Layout)


def convert(a: Layout, kind: type[Kind]) -> Kind:
    """The same matrix in another layout. Raises `ValueError` if that layout cannot hold this pattern.

    >>> import torch
    >>> w = torch.tensor([[5.0, 0.0, 0.0, 7.0]])
    >>> convert(Csr.pack(w, w != 0), Nm).place
    tensor([[12]], dtype=torch.uint8)
    """
    return a if isinstance(a, kind) else kind.pack(a.dense(), a.keep())


def smallest(
    x: Shaped[Tensor, "rows cols"],
    keep: Bool[Tensor, "rows cols"],
    budget: Budget | None = None,
    grid: Grid | None = None,
) -> Layout:
    """The layout of fewest bytes for this pattern, `Dense` if none is smaller. N:M is tried if the budget says so.

    All but `Dense` hold the pattern exactly; `Dense` forgets zeros that were kept. With a grid, on which the weights
    lie, it is the smallest for the codes.

    >>> import torch
    >>> w = torch.eye(64)
    >>> smallest(w, w != 0).name, smallest(w, w < 2).name
    ('csr', 'dense')
    """
    same_shape(x, keep)
    if grid is None:
        return _smallest(x, keep, budget, 8 * x.element_size())
    return (Quantised if grid.apart is None else Spqr).pack(x, keep, grid, _how(keep, budget, grid))


def _how(keep: Bool[Tensor, "rows cols"], budget: Budget | None, grid: Grid) -> How:
    """How codes on this grid are packed best."""
    zeros_too = grid.zero is None or bool(keep.all())  # a dropped weight has no code if 0 is not code 0
    among = (Dense, Bitmask, Csr) if zeros_too else (Bitmask, Csr)
    return partial(_smallest, budget=budget, bits=grid.bits, among=among)


def _smallest(
    x: Shaped[Tensor, "rows cols"],
    keep: Bool[Tensor, "rows cols"],
    budget: Budget | None,
    bits: int,
    among: Sequence[type[Dense] | type[Bitmask] | type[Csr]] = (Dense, Bitmask, Csr),
) -> Layout:
    """The same for values that take `bits` bits each: what is stored beside them does not depend on that."""
    shape, kept = (x.shape[0], x.shape[1]), int(keep.sum())
    ways: list[tuple[int, Callable[[], Layout]]]
    ways = [(k.bytes_for(shape, kept, 0), partial(k.pack, x, keep)) for k in among if k is not Dense]
    if budget is not None and budget.group and kept_of(keep, budget.group) is not None:
        ways.append((Nm.bytes_for(shape, kept, 0, budget.group), partial(Nm.pack, x, keep, budget.group)))
    h, w = common_unit(keep, most=32)
    ways.append((Tiles.bytes_for(shape, kept, 0, min(h, 16)), partial(Tiles.pack, x, keep, min(h, 16))))
    ways.append((Bsr.bytes_for(shape, kept, 0, (h, w)), partial(Bsr.pack, x, keep, (h, w))))
    values, whole = -(-kept * bits // 8), -(-keep.numel() * bits // 8)
    beside, pack = min(ways, key=lambda way: way[0])
    return Dense.pack(x, keep) if Dense in among and whole <= values + beside else pack()


def quantised_together(parts: Sequence[tuple[slice | Tensor | None, Layout]], rows: int) -> Quantised | None:
    """One layout out of those of some rows each; None unless they have every row between them and grids of one kind.

    Each row keeps its own codes, scales and zeros, so that nothing is rounded again.
    """
    grids = [part.grid for _, part in parts if isinstance(part, Quantised)]
    kinds = {(g.bits, g.zero is None, g.scale.shape[1:]) for g in grids if isinstance(g.scale, Tensor)}
    if len(grids) != len(parts) or len(kinds) != 1 or any(isinstance(g.scale, Layout) for g in grids):
        return None
    whole: dict[str, Tensor] = {}
    owned = torch.zeros(rows, dtype=torch.bool)
    for place, part in parts:
        assert isinstance(part, Quantised)
        here = slice(None) if place is None else place
        owned[here] = True
        pieces = {"codes": part.codes().dense(), "keep": part.keep(), "scale": part.scale, "zero": part.zero}
        for name, piece in pieces.items():
            if isinstance(piece, Tensor):
                whole.setdefault(name, piece.new_zeros(rows, piece.shape[1]))[here] = piece
    if not owned.all():
        return None
    grid = Grid(grids[0].bits, whole["scale"], whole.get("zero"))
    return Quantised.of(whole["codes"], whole["keep"], grid, _how(whole["keep"], None, grid))
