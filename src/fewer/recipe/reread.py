"""The second pass of evictors that have the model say a text again before they forget any of it."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fewer.cache import Evictor
from fewer.models.cache_layer import Memory

from .forwarded import forwarded, given

if TYPE_CHECKING:
    from .attending import Attending

HINT = 8  # tokens before a part, which say where it begins


@contextlib.contextmanager
def reread(model: nn.Module, engine: "Attending", evictor: Evictor | None, few: int) -> Iterator[None]:
    """While this is open, a prompt of more than `few` tokens is said again as soon as the model has read it, if an evictor asks for that."""
    if evictor is None:
        yield
        return
    plain = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        ids, name, _ = given(args, kwargs)
        if not name or ids is None or ids.shape[1] <= few:
            return plain(*args, **kwargs)
        with engine.waiting():
            out = plain(*args, **kwargs)
            if memories := given(args, kwargs)[2]:  # layers become ours when a model first meets them
                _again(plain, engine, evictor, memories, ids, name, kwargs)
        return out

    with forwarded(model, forward):
        yield


def _again(
    plain: Any,
    engine: "Attending",
    evictor: Evictor,
    memories: list[Memory],
    ids: Tensor,
    name: str,
    kwargs: dict[str, Any],
) -> None:
    """Part by part: asked to, the model says it, and what its queries read is noted; then all of that is taken back."""
    mask, before = kwargs.get("attention_mask"), memories[0].seen
    real = mask if isinstance(mask, Tensor) and mask.ndim == 2 else ids.new_ones(len(ids), before)
    ask = torch.tensor(evictor.prompt, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)
    here = real[:, -ids.shape[1] :]
    inner = [m.bare for m in memories]
    states = [tuple(_own(x) for x in (m.q, m.now, m.real, m.since)) for m in inner]
    for first in range(0, ids.shape[1], evictor.chunk):
        some = slice(max(0, first - HINT), first + evictor.chunk)
        part = torch.cat([ask, ids[:, some]], 1)
        seen = torch.cat([real, torch.ones_like(ask), here[:, some]], 1)
        place = (seen.long().cumsum(1) - 1).clamp(min=0)[:, -part.shape[1] :]
        with torch.no_grad(), engine.asking():
            plain(input_ids=part, attention_mask=seen, position_ids=place, use_cache=True, **{name: kwargs[name]})
        for memory, m, state in zip(memories, inner, states, strict=True):
            memory.crop(part.shape[1])
            m.q, m.now, m.real, m.since = map(_own, state)


def _own(x: Any) -> Any:
    """A copy, as what is remembered is written over."""
    return x.clone() if isinstance(x, Tensor) else x
