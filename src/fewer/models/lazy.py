"""Open a checkpoint without reading it: blocks stay on the meta device and are read from disk one at a time."""

import json
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig

from .blocks import stacks
from .opening import auto_class, locate


class _Source:
    """The files of a checkpoint, and which of them holds which tensor."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self.path, self.dtype, self.files = path, dtype, {}
        index = path / "model.safetensors.index.json"
        if index.is_file():
            self.files = json.loads(index.read_text())["weight_map"]
            return
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                self.files |= dict.fromkeys(opened.keys(), file.name)

    def key(self, name: str, prefix: str) -> str | None:
        """The name that the checkpoint gives this tensor: its own, or that of a model saved without its head."""
        return next((k for k in (name, name.removeprefix(prefix + ".")) if k in self.files), None)

    def read(self, key: str) -> Tensor:
        with safe_open(self.path / self.files[key], "pt") as opened:
            tensor = opened.get_tensor(key)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


_sources: "WeakKeyDictionary[nn.Module, _Source]" = WeakKeyDictionary()


def open_lazily(path: str | Path, dtype: str = "float32") -> nn.Module:
    """The model in a local directory with everything but its blocks in memory; blocks lie on the meta device.

    Embeddings, norms, heads and rotary buffers are there; `materialise` reads one block, `release` lets it go. Raises
    `ValueError` for a directory that is no model, and for a checkpoint whose tensors transformers would rename or stack
    while opening it (Mixtral's experts): open those with `open_model`.
    """
    place = Path(locate(path))
    config = AutoConfig.from_pretrained(place)
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{path} is packed or quantised already; open it with open_model")
    with torch.device("meta"):
        model = auto_class(config).from_config(config, dtype=getattr(torch, dtype))
    source = _Source(place, getattr(torch, dtype))
    _check_names(model, source, str(path))
    _fill_plain_buffers(model)
    inside = tuple(f"{name}." for name in stacks(model))
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        if not name.startswith(inside):
            _load(model, name, source)
    model.tie_weights()
    _sources[model] = source
    return model.eval().requires_grad_(False)


def materialise(model: nn.Module, block: str) -> None:
    """Read the tensors of one block (`"model.layers.3"`) that are still on the meta device."""
    source, module = _source(model), model.get_submodule(block)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta:
            _load(model, f"{block}.{name}", source)


def release(model: nn.Module, block: str) -> None:
    """Send the parameters of one block back to the meta device; what was changed in them is lost.

    Packed modules keep their buffers, so a block that was pruned and packed stays.
    """
    source, module = _source(model), model.get_submodule(block)
    for name, parameter in list(module.named_parameters()):
        if source.key(f"{block}.{name}", model.base_model_prefix) is not None:
            _set(model, f"{block}.{name}", parameter.to("meta"))


def _source(model: nn.Module) -> _Source:
    if model not in _sources:
        raise ValueError("this model was not opened by open_lazily, so its blocks cannot be read again")
    return _sources[model]


def _check_names(model: nn.Module, source: _Source, path: str) -> None:
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    for name in model.state_dict():
        if source.key(name, model.base_model_prefix) is None and name not in tied:
            raise ValueError(
                f"{path} has no tensor {name!r}, so it cannot be opened block by block (transformers may store it under "
                "other names); open it with open_model"
            )


def _fill_plain_buffers(model: Any) -> None:
    """Buffers that no checkpoint holds (rotary frequencies) are computed, by the model's own rule.

    While every parameter is still on the meta device: the same rule would set those anew.
    """
    for module in model.modules():
        plain = [n for n in module._non_persistent_buffers_set if getattr(module, n) is not None]
        for name in plain:
            setattr(module, name, torch.empty_like(getattr(module, name), device="cpu"))
        if plain:
            model._init_weights(module)


def _load(model: nn.Module, name: str, source: _Source) -> None:
    key = source.key(name, model.base_model_prefix)
    if key is not None:
        _set(model, name, source.read(key))


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    home, _, leaf = name.rpartition(".")
    module = model.get_submodule(home)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor
