"""Places that several operations of one step will sort by atom: the order is found once."""

from typing import Any

from torch import Tensor

MOST = 32  # indices that are remembered; the oldest is forgotten first
_known: dict[int, list[Any]] = {}  # by address: the index, held so that its memory is not used again, and its order


def share(index: Tensor) -> None:
    """Say that `index` will be sorted more than once, and that all its slots are used: none need be put aside."""
    _known.pop(index.data_ptr(), None)
    _known[index.data_ptr()] = [index, index._version, None]
    while len(_known) > MOST:
        del _known[next(iter(_known))]


def shared(index: Tensor) -> list[Any] | None:
    """What is remembered of an index that was shared: last in the list its order, None as long as nobody has found it."""
    found = _known.get(index.data_ptr())
    if found is None or found[0].shape != index.shape or found[1] != index._version:
        return None
    return found
