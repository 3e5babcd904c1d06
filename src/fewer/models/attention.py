"""Attention of a running transformers model, done by us: through its registries, its cache's layers and plain hooks.

Nothing of transformers is replaced. `attended` registers one name with its attention and mask interfaces, tells the model to use
it, and takes it back on leaving; a cache's layers become ours when a module first meets them.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import causal_mask_function, sdpa_mask

from .cache_layer import Asked, Engine, Layer, Memory
from .where import is_named, taken

NAME = "fewer"  # as transformers knows us


def attentions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The attention modules of a model that ask transformers' interface, in the order of their layers.

    ValueError if there is none, with what there is of that name.
    """
    found = [(name, m) for name, m in model.named_modules() if _asks(m)]
    if not found:
        like = sorted({type(m).__name__ for m in model.modules() if "atten" in type(m).__name__.lower()})
        raise ValueError(
            f"{type(model).__name__} has no attention module that goes through transformers' attention interface"
            + (f"; it has {', '.join(like)}" if like else "")
        )
    return found


def attentions_at(model: nn.Module, where: str) -> list[tuple[str, nn.Module]]:
    """Those of them at a place: patterns of their names, as `*`, `*.0.*,*.1.*`, `!*.31.*`. ValueError if there is none."""
    found = attentions(model)
    names = [name for name, _ in found]

    def hits(pattern: str) -> set[str]:
        if some := {n for n in names if is_named(n, pattern)}:
            return some
        raise ValueError(f"no attention module matches {pattern!r}; there are: {', '.join(names[:3])}, ...")

    mine = taken(where, hits)
    if not mine:
        raise ValueError(f"{where!r} leaves no attention module; there are: {', '.join(names[:3])}, ...")
    return [(name, module) for name, module in found if name in mine]


def _asks(module: nn.Module) -> bool:
    if "attention" not in type(module).__name__.lower():
        return False
    return "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(type(module).forward).__code__.co_names


@contextlib.contextmanager
def attended(model: nn.Module, engine: Engine) -> Iterator[None]:
    """While this is open, the model's attention is `engine`'s, in training, prefill and `generate` alike."""
    found = attentions(model)
    AttentionInterface.register(NAME, torch.compiler.disable(_attention))  # what is around it can be compiled
    AttentionMaskInterface.register(NAME, _mask)
    before = {id(m.config): (m.config, m.config._attn_implementation) for m in model.modules() if hasattr(m, "config")}
    hooks = []
    try:
        model.set_attn_implementation(NAME)
        for _, module in found:
            _engines[module] = engine
            meets = _Meets(engine, getattr(module, "layer_idx", None))
            hooks.append(module.register_forward_pre_hook(torch.compiler.disable(meets), with_kwargs=True))
        if unheard := [name for name, m in found if _way(m) != NAME]:
            raise ValueError(
                f"{unheard[0]} does not let its attention be chosen; transformers says it uses {_way(found[0][1])!r}"
            )
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for _, module in found:
            _engines.pop(module, None)
            _memories.pop(module, None)
            _heard.pop(module, None)
        for config, way in before.values():
            config._attn_implementation = way


def _way(module: nn.Module) -> str:
    return module.config._attn_implementation if hasattr(module, "config") else NAME


_engines: WeakKeyDictionary[nn.Module, Engine] = WeakKeyDictionary()
_memories: WeakKeyDictionary[nn.Module, Memory | None] = WeakKeyDictionary()
_heard: WeakKeyDictionary[nn.Module, tuple[Any, Any]] = (
    WeakKeyDictionary()
)  # hidden states and angles, until it is asked


@dataclass
class _Meets:
    """Before a module runs: what it hears is at hand, and the layer of the cache that it is given is ours, or becomes ours."""

    engine: Engine
    layer: int | None

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        _heard[module] = kwargs.get("hidden_states", args[0] if args else None), kwargs.get("position_embeddings")
        cache = next((x for x in (*kwargs.values(), *args) if isinstance(x, Cache)), None)
        if cache is None or self.layer is None:
            _memories[module] = None
            return
        while cache.layer_class_to_replicate is not None and len(cache.layers) <= self.layer:
            cache.layers.append(cache.layer_class_to_replicate())
        there = cache.layers[self.layer]
        if type(there) in (DynamicLayer, DynamicSlidingWindowLayer):
            if there.get_seq_length():
                raise ValueError(
                    f"layer {self.layer} of this cache holds {there.get_seq_length()} tokens that were cached before "
                    "`fewer.apply(...)`: begin with an empty cache"
                )
            there = cache.layers[self.layer] = Layer(self.engine.memory(module), there.is_sliding)
        if not isinstance(there, Layer):
            raise ValueError(
                f"a {type(there).__name__} cannot forget: give a DynamicCache, or none (cache_implementation=None)"
            )
        if there.memory.engine is not self.engine:
            raise ValueError("this cache was filled by other steps: begin with an empty cache")
        _memories[module] = there.memory
        there.awaited = True


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls; signature and layout are its own."""
    engine = _engines.get(module)
    if engine is None:
        raise RuntimeError("the attention 'fewer' works inside `with fewer.apply(...)` only")
    if dropout:
        raise ValueError(f"attention dropout of {dropout} cannot be combined with sparse attention: call model.eval()")
    memory = _memories.get(module)
    mask, real = None, attention_mask
    if attention_mask is not None and attention_mask.ndim == 4:
        mask, real = attention_mask if attention_mask.dtype == torch.bool else attention_mask >= 0, None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    x, angles = _heard.pop(module, (None, None))
    turn = None if angles is None else partial(_turned, module, angles)
    asked = Asked(
        query, key, value, scaling or query.shape[-1] ** -0.5, real, mask,
        sliding_window or 0, softcap or 0.0, s_aux, causal and mask is None, x, turn,
    )  # fmt: skip
    _fits(asked, 0 if memory is None else memory.seen)
    return engine.attend(module, asked, memory).transpose(1, 2).contiguous(), None


def _turned(module: nn.Module, angles: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """Vectors of heads, `[batch, heads, new, dim]`, rotated by the function that the model's own file has for its queries."""
    rotate = getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)
    if rotate is None:
        raise ValueError(f"{type(module).__name__} rotates its queries, and its file does not say how")
    return rotate(x, x, *angles)[0]


def _fits(asked: Asked, seen: int) -> None:
    tokens = seen + asked.k.shape[2]
    for given in (asked.real, asked.mask):
        if given is not None and given.shape[-1] != tokens:
            raise ValueError(
                f"attention_mask is for {given.shape[-1]} tokens, and there are {tokens}: {seen} cached and {tokens - seen} new"
            )


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    local_size: int | None = None,
    config: Any = None,
    **kwargs: Any,
) -> Tensor | None:
    """The plain `[batch, tokens]` mask of padding; who may read whom is written out only for unusual masks."""
    plain = mask_function is causal_mask_function
    sliding = local_size is not None and local_size == getattr(config, "sliding_window", None) and allow_is_causal_skip
    both_ways = kwargs.get("allow_is_bidirectional_skip", False)
    if plain or sliding or both_ways:
        return attention_mask
    kwargs.pop("dtype", None)
    return sdpa_mask(
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=q_offset, kv_offset=kv_offset,
        mask_function=mask_function, attention_mask=attention_mask, allow_is_causal_skip=False,
        local_size=local_size, **kwargs,
    )  # fmt: skip


def rotary(model: nn.Module, layer_type: str = "") -> Tensor | None:
    """The frequencies of a model's rotary positions, if it has them: those of a layer type where they differ."""
    named = [
        (name, b)
        for name, b in model.named_buffers()
        if name.endswith("inv_freq") and not name.endswith("original_inv_freq")
    ]
    mine = [b for name, b in named if layer_type and layer_type in name] or [b for _, b in named]
    return mine[0] if mine else None


def kinds(model: nn.Module) -> Sequence[str]:
    """The type of each layer, as the config has it: `full_attention`, `sliding_attention`, ..."""
    config = getattr(model.config, "text_config", model.config)
    return getattr(config, "layer_types", None) or []
