"""Open a checkpoint without reading it: blocks stay on the meta device and are read from disk one at a time."""

from copy import deepcopy
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fewer.layout import Dense

from . import compressed_tensors
from .blocks import blocks, stacks
from .checkpoint import Checkpoint
from .opening import auto_class, locate, weights_of
from .packed import SparseLinear, swap
from .slim import resize
from .widths import remember


class _Source:
    """The files of a checkpoint, and of which of their tensors each tensor of the model is made.

    transformers renames some tensors on the way in and stacks others (a tensor an expert becomes one of all experts);
    its own rules are asked, so that what is read is what `from_pretrained` would have read.
    """

    def __init__(self, path: Path, model: Any, dtype: torch.dtype) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        self.stored, self.dtype = Checkpoint(path), dtype
        rules = get_model_conversion_mapping(model)
        renamings = [r for r in rules if isinstance(r, WeightRenaming)]
        stackings = [r for r in rules if isinstance(r, WeightConverter)]
        by_pattern = {pattern: r for r in stackings for pattern in r.source_patterns}
        mine = model.state_dict()
        self.made_of: dict[str, tuple[Any, list[tuple[str, str | None]]]] = {}
        for key in sorted(self.stored.names, key=_natural):
            whole = rename_source_key(key, renamings, stackings, model.base_model_prefix, mine)
            plain = rename_source_key(key, [], [], model.base_model_prefix, mine)
            name, pattern = whole if whole[0] in mine else plain
            stacking = None if pattern is None else by_pattern[pattern]
            self.made_of.setdefault(name, (stacking, []))[1].append((key, pattern))

    def read(self, key: str) -> Tensor:
        tensor = self.stored.read(key)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def make(self, name: str, model: Any) -> Tensor:
        """The model's tensor `name`, from the one or several that the checkpoint holds for it."""
        stacking, keys = self.made_of[name]
        if stacking is None:
            return self.read(keys[0][0])
        stacking = deepcopy(stacking)
        for key, pattern in keys:
            stacking.add_tensor(name, key, pattern, self.read(key))
        made = stacking.convert(name, model=model, config=model.config)[name]
        return made[0] if isinstance(made, list) else made


def _natural(key: str) -> list[tuple[int, str]]:
    """Expert 10 comes after expert 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]


_sources: "WeakKeyDictionary[nn.Module, _Source]" = WeakKeyDictionary()


def open_lazily(path: str | Path, dtype: str = "float32") -> nn.Module:
    """The model in a local directory with everything but its blocks in memory; blocks lie on the meta device.

    Embeddings, norms, heads and rotary buffers are there; `materialise` reads one block, `release` lets it go. Raises
    `ValueError` for a directory that is no model, and for a checkpoint that lacks a tensor of the model or would have
    one of its tensors split into several: open those with `open_model`.
    """
    from transformers import AutoConfig

    place = Path(locate(path))
    config = AutoConfig.from_pretrained(place)
    compressed_tensors.forget(config)
    told = getattr(config, "quantization_config", None) or {}
    if told and (told.get("quant_method") != "fewer" or told.get("sites")):
        raise ValueError(f"{path} is packed or quantised already; open it with open_model")
    with torch.device("meta"):
        model = auto_class(config).from_config(config, dtype=getattr(torch, dtype))
    resize(model, told.get("widths", {}))
    remember(model, told.get("widths", {}))
    with weights_of(path):
        source = _Source(place, model, getattr(torch, dtype))
    _check_names(model, source, str(path))
    _fill_plain_buffers(model)
    inside = tuple(f"{name}." for name in stacks(model))
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        if not name.startswith(inside):
            _load(model, name, source)
    model.tie_weights()
    _sources[model] = source
    return model.eval().requires_grad_(False)


def open_packed(path: str | Path, dtype: str = "float32") -> nn.Module:
    """A checkpoint of another tool, whole: what it stores sparse in the place of an `nn.Linear` stays packed."""
    model = open_lazily(path, dtype)
    source, known = _source(model), model.state_dict().keys()
    if unknown := [n for n in sorted(source.made_of) if n not in known and not n.endswith("inv_freq")]:
        raise ValueError(f"{path} has weights that the model does not know: {', '.join(unknown[:3])}")
    stored = source.stored
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and f"{n}.weight" in stored.foreign}
    layouts = {n: stored.layout(f"{n}.weight") for n in sorted(linears)}
    packs = {n: layout for n, layout in layouts.items() if not isinstance(layout, Dense)}
    swap(model, {n: SparseLinear.from_linear(model.get_submodule(n), layout) for n, layout in packs.items()})
    for name, _ in blocks(model):
        materialise(model, name)
    return model


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
        if f"{block}.{name}" in source.made_of:
            _set(model, f"{block}.{name}", parameter.to("meta"))


def _source(model: nn.Module) -> _Source:
    if model not in _sources:
        raise ValueError("this model was not opened by open_lazily, so its blocks cannot be read again")
    return _sources[model]


def _check_names(model: nn.Module, source: _Source, path: str) -> None:
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    for name in model.state_dict():
        if name not in source.made_of and name not in tied:
            raise ValueError(
                f"{path} has no tensor {name!r}, so it cannot be opened block by block ; "
                "open it with open_model, which says more"
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
    if name in source.made_of:
        _set(model, name, source.make(name, model))


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    home, _, leaf = name.rpartition(".")
    module = model.get_submodule(home)
    if (old := getattr(module, leaf)).shape != tensor.shape:
        raise ValueError(f"{name} is {tuple(tensor.shape)} in the checkpoint and {tuple(old.shape)} in the model")
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor
