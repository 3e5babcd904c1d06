"""From one layout to another, and the smallest that holds a given pattern."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from jaxtyping import Bool, Shaped
from torch import Tensor

from fewer.core import Budget

from ._base import Layout
from ._bits import common_unit, same_shape
from .bitmask import Bitmask
from .bsr import Bsr
from .csr import Csr
from .dense import Dense
from .nm import Nm, kept_of
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


def smallest(x: Shaped[Tensor, "rows cols"], keep: Bool[Tensor, "rows cols"], budget: Budget | None = None) -> Layout:
    """The layout of fewest bytes for this pattern, `Dense` if none is smaller. N:M is tried if the budget says so.

    All but `Dense` hold the pattern exactly; `Dense` forgets zeros that were kept.

    >>> import torch
    >>> w = torch.eye(64)
    >>> smallest(w, w != 0).name, smallest(w, w < 2).name
    ('csr', 'dense')
    """
    same_shape(x, keep)
    shape, kept, item = (x.shape[0], x.shape[1]), int(keep.sum()), x.element_size()
    ways: list[tuple[int, Callable[[], Layout]]]
    ways = [(k.bytes_for(shape, kept, item), partial(k.pack, x, keep)) for k in (Dense, Bitmask, Csr)]
    if budget is not None and budget.group and kept_of(keep, budget.group) is not None:
        ways.append((Nm.bytes_for(shape, kept, item, budget.group), partial(Nm.pack, x, keep, budget.group)))
    h, w = common_unit(keep, most=32)
    ways.append((Tiles.bytes_for(shape, kept, item, min(h, 16)), partial(Tiles.pack, x, keep, min(h, 16))))
    ways.append((Bsr.bytes_for(shape, kept, item, (h, w)), partial(Bsr.pack, x, keep, (h, w))))
    return min(ways, key=lambda way: way[0])[1]()
