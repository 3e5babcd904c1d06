"""Decoding that is refreshed: the latest tokens are taken back now and then, and said again with dense attention."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewer.attention import Refresher
from fewer.models.cache_layer import Memory

from .forwarded import forwarded, given
from .remembered import Remembered

if TYPE_CHECKING:
    from .attending import Attending


@contextlib.contextmanager
def refreshed(model: nn.Module, engine: "Attending", refresher: Refresher | None) -> Iterator[None]:
    """While this is open, what `model.forward` decodes is said again whenever `refresher` says so."""
    if refresher is None:
        yield
        return
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        ids, name, memories = given(args, kwargs)
        if ids is not None and memories and memories[0].seen:
            _before(plain, engine, refresher, memories, name, kwargs)
            _note(memories[0].bare, ids, kwargs.get("position_ids"))
        return plain(*args, **kwargs)

    with forwarded(model, forward):
        yield


def _note(first: Remembered, ids: Tensor, positions: Tensor | None) -> None:
    """Remember the token of a step, and where it stands; more than one at once are a prompt, which was not sparse."""
    if ids.shape[1] > 1:
        first.said = first.stood = None
        return
    if positions is None:
        positions = torch.full_like(ids, first.seen)
    positions = positions.expand_as(ids)
    first.said = ids if first.said is None else torch.cat([first.said, ids], 1)
    first.stood = positions if first.stood is None else torch.cat([first.stood, positions], 1)


def _before(
    plain: Any,
    engine: "Attending",
    refresher: Refresher,
    memories: list[Memory],
    name: str,
    kwargs: dict[str, Any],
) -> None:
    """What is due before the next token: take back the latest, and say them again densely."""
    first = memories[0].bare
    if first.said is None or not (n := refresher.due(first.said.shape[1])):
        return
    ids, positions = first.said[:, -n:], first.stood[:, -n:]
    mask = kwargs.get("attention_mask")
    again = {"input_ids": ids, "position_ids": positions, "use_cache": True, name: kwargs[name]}
    if isinstance(mask, Tensor) and mask.ndim == 2:
        again["attention_mask"] = mask[:, : first.seen]
    for memory in memories:
        memory.crop(n)
    engine.dense = True
    try:
        plain(**again)
    finally:
        engine.dense = False
    first.said = first.stood = None
