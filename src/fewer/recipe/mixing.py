"""Mixers in a running model: what they are told of a module, and what they have learnt, on the module and in files."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fewer.attention import Mixer, Reading, Shape, read_parts
from fewer.models.cache_layer import Asked

from .steps import Step

PLACE = "mixer"  # the name of a mixer's parts on a module


def shape_of(module: nn.Module, config: object, number: int) -> Shape:
    """What an attention module and its model's config say. ValueError names the module that does not say it."""
    config = getattr(config, "text_config", config)
    heads, hidden = (getattr(config, name, None) for name in ("num_attention_heads", "hidden_size"))
    if not isinstance(heads, int) or not isinstance(hidden, int):
        raise ValueError(f"{type(module).__name__}: its config does not say how many heads there are, or how wide x is")
    few = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads
    groups = getattr(module, "num_key_value_groups", None)
    dim = getattr(module, "head_dim", None) or getattr(module, "head_size", None) or hidden // heads
    return Shape(heads, heads // groups if groups else few, dim, hidden, number)


def parts_of(s: Step, module: nn.Module, name: str, shape: Shape) -> nn.ParameterDict:
    """A mixer's tensors for a module, where it lives and in its dtype: those of its file, if it has one, or the first ones."""
    mixer = s.method
    assert isinstance(mixer, Mixer)
    first = mixer.begin(shape, torch.Generator().manual_seed(shape.layer))
    if first and hasattr(module, PLACE):
        raise ValueError(f"{name} has something of the name {PLACE!r} already: leave the steps that were done before")
    if first and mixer.file:
        first = _learnt(mixer, name, first)
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    return nn.ParameterDict({part: nn.Parameter(t.to(like.device, like.dtype)) for part, t in first.items()})


def _learnt(mixer: Mixer, module: str, first: Mapping[str, Tensor]) -> dict[str, Tensor]:
    there = read_parts(mixer.file).get(module, {})
    for part, begun in first.items():
        if part not in there:
            raise ValueError(f"{mixer.file} holds no {part!r} of {module}, which {mixer.name} needs")
        if there[part].shape != begun.shape:
            raise ValueError(
                f"{mixer.file}: {part!r} of {module} is of shape {list(there[part].shape)}; here it must be {list(begun.shape)}"
            )
    return {part: there[part].clone() for part in first}


@contextlib.contextmanager
def parted(parts: Mapping[nn.Module, nn.ParameterDict]) -> Iterator[None]:
    """While this is open, each module has its mixer's parts as parameters, so that an optimiser finds them."""
    for module, mine in parts.items():
        module.add_module(PLACE, mine)
    try:
        yield
    finally:
        for module in parts:
            delattr(module, PLACE)


def noted(s: Step, asked: Asked, parts: nn.ParameterDict, number: int) -> Asked:
    """With what the mixer wants to be remembered of the new tokens behind their keys."""
    mixer = s.method
    assert isinstance(mixer, Mixer)
    at, now = (torch.zeros(x.shape[0], x.shape[2], dtype=torch.int32, device=x.device) for x in (asked.k, asked.q))
    r = Reading(
        asked.q, asked.k, asked.v, at[:, None].expand(-1, asked.k.shape[1], -1), now, asked.scale,
        parts=dict(parts.items()), x=asked.x, turn=asked.turn, layer=number,
    )  # fmt: skip
    note = mixer.note(r)
    return asked if note is None else replace(asked, k=torch.cat([asked.k, note.to(asked.k.dtype)], -1))


def mixed(
    s: Step,
    asked: Asked,
    parts: nn.ParameterDict,
    number: int,
    stored: tuple[Tensor, Tensor, Tensor],
    now: Tensor,
    before: Tensor | None,
    owed: list[Tensor] | None = None,
) -> Tensor:
    """What the mixer makes of what is stored; places are counted from each row's first token, `before` which there is padding.

    A list of what is owed is given the mixer's penalty.
    """
    mixer, (k, v, at), dim = s.method, stored, asked.q.shape[-1]
    assert isinstance(mixer, Mixer)
    if before is not None and asked.mask is None:
        at = torch.where(at >= 0, at - before[:, None, None], at).int()
        now = torch.where(now >= 0, now - before[:, None], now).int()
    note = k[..., dim:] if k.shape[-1] > dim else None
    r = Reading(
        asked.q, k[..., :dim], v, at, now, asked.scale, asked.window, asked.cap, asked.mask, asked.causal, asked.sinks,
        dict(parts.items()), asked.x, note, asked.turn, number,
    )  # fmt: skip
    if owed is not None and (penalty := mixer.penalty(r)) is not None:
        owed.append(penalty)
    return mixer.mix(r, s.budget)
