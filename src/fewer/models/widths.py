"""How a slimmed model is described: in plain configuration values where those can say it, else group by group."""

import copy
import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from .groups import every_group, head_size
from .opening import _quiet, auto_class
from .slim import resize

# What configurations call the width of an MLP, the number of heads, and that of key-value heads.
MLP = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "encoder_ffn_dim", "d_ff")
HEADS = ("num_attention_heads", "encoder_attention_heads")
KEYS = ("num_key_value_heads", "num_kv_heads")

_narrow: "WeakKeyDictionary[nn.Module, dict[str, int]]" = WeakKeyDictionary()


def widths_of(model: nn.Module) -> dict[str, int]:
    """The groups of `model` that are narrower than its configuration says, and how many units they have."""
    return dict(_narrow.get(model, {}))


def remember(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Note that groups of `model` are narrower than its configuration says."""
    _narrow[model] = {**widths_of(model), **widths}


def settings(model: nn.Module, widths: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, int]]:
    """What to write into the configuration of a model whose groups have these numbers of units, and what it leaves open.

    If every layer is alike and the plain values (`intermediate_size`, `num_attention_heads`, ...) describe all shapes,
    nothing is left open: the model needs no loader of ours. Else each layer's values stand in `per_layer_config`, as
    transformers writes it, the global values stay those of the dense model, and `widths` are what our loader reads.
    """
    config: Any = getattr(model, "config", None)
    if not widths or config is None:
        return {}, dict(widths)
    layers = _layers(config, model, widths)
    rows = list(layers.values())
    if layers and len(layers) == config.num_hidden_layers and all(row == rows[0] for row in rows):
        kind = {"architectures": config.architectures or [type(model).__name__]}
        goal, head = _shapes(config, kind, widths), {"head_dim": _head(model)}
        clean: dict[str, Any] = {"per_layer_config": None} if getattr(config, "is_heterogeneous", False) else {}
        for row in (
            {**rows[0], **clean},
            {**rows[0], **clean, **head},
        ):  # fewer heads of the same size: some must be told that size
            if goal is not None and _shapes(config, {**kind, **row}, {}) == goal:
                return row, {}
    told: dict[str, Any] = {"per_layer_config": {str(i): row for i, row in layers.items()}} if layers else {}
    return {**told, **({"allow_global_per_layer_attribute_access": True} if layers else {})}, dict(widths)


def _layers(config: Any, model: nn.Module, widths: Mapping[str, int]) -> dict[int, dict[str, int]]:
    """The values of each layer that differ from the global ones, by their names in this configuration."""
    told = config.to_dict()
    out: dict[int, dict[str, int]] = {}
    for group in every_group(model):
        if group.name not in widths or group.layer is None:
            continue
        n, row = widths[group.name], out.setdefault(group.layer, {})
        if group.reader.role == "down":
            row |= {word: n for word in _words(config, told, MLP)[:1]}
            continue
        each = sum(s.shape[0] for s in group.writers if s.role == "q") // sum(
            s.shape[0] for s in group.writers if s.role == "k"
        )
        row |= {word: n * each for word in _words(config, told, HEADS)[:1]}
        row |= {word: n for word in _words(config, told, KEYS)[:1]}
    return {i: out[i] for i in sorted(out)}


def _head(model: nn.Module) -> int | None:
    names = (g.name for g in every_group(model) if g.reader.role == "o")
    return next((head_size(model, model.get_submodule(name)) for name in names), None)


def _words(config: Any, told: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """Those of the names that the configuration has, as it spells them itself."""
    spelt = [getattr(config, "attribute_map", {}).get(name, name) for name in names]
    return [name for name in spelt if name in told]


def _shapes(config: Any, changed: Mapping[str, Any], widths: Mapping[str, int]) -> dict[str, tuple[int, ...]] | None:
    """The shapes of a model built from the configuration with some values changed, or with groups made narrower."""
    told = {k: v for k, v in config.to_dict().items() if k != "quantization_config"}
    try:
        new = type(config).from_dict({**json.loads(json.dumps(told, default=str)), **changed})
        with torch.device("meta"), _quiet():
            model = auto_class(new).from_config(new)
    except (ValueError, TypeError, RuntimeError, AssertionError, StrictDataclassError):
        return None
    resize(model, widths)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def settle(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Let a slimmed model's own configuration say what it is, as far as it can; the rest is remembered."""
    told, rest = settings(model, {**widths_of(model), **widths})
    _narrow.pop(model, None)
    if rest:
        remember(model, rest)
    if hasattr(model, "config"):
        for name, value in told.items():
            setattr(model.config, name, copy.copy(value))
