"""Packed models as checkpoints: importing this lets transformers' `from_pretrained` open what we save."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from fewer.layout import find_layout

from .packed import SparseLinear, swap
from .slim import resize
from .widths import remember

VERSION = 1


def describe(model: nn.Module) -> dict[str, Any]:
    """The `quantization_config` of a model with `SparseLinear` modules: layouts, numbers, names and shapes of tensors."""
    packed = {name: m for name, m in model.named_modules() if isinstance(m, SparseLinear)}
    return {"quant_method": "fewer", "version": VERSION, "sites": {name: _describe(m) for name, m in packed.items()}}


def _describe(module: SparseLinear) -> dict[str, Any]:
    tensors = {n: t for n, t in module.named_buffers(recurse=False)}
    values = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    return {
        "layout": module.kind.name,
        "numbers": module.layout.numbers(),
        "dtype": str(values).removeprefix("torch."),
        "rank": 0 if module.right is None else len(module.right),
        "bias": module.bias is not None,
        "tensors": {n: [str(t.dtype).removeprefix("torch."), list(t.shape)] for n, t in tensors.items()},
    }


def empty(name: str, told: Mapping[str, Any], old: nn.Module) -> SparseLinear:
    """A `SparseLinear` on the meta device, as described, to be filled by a loader."""
    tensors = {
        field: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for field, (dtype, shape) in told["tensors"].items()
    }
    low_rank = (tensors.pop("left"), tensors.pop("right")) if told["rank"] else None
    around = (tensors.pop("outer"), tensors.pop("inner")) if "outer" in tensors else None
    layout = find_layout(told["layout"]).restore(tensors, told["numbers"])
    try:
        packed = SparseLinear.from_linear(old, layout, low_rank, around)
    except ValueError as error:
        raise ValueError(f"{name} in quantization_config: {error}") from error
    if told.get("bias") and packed.bias is None:  # the architecture has none: a corrector gave it one
        bias = torch.empty(packed.out_features, dtype=old.weight.dtype, device="meta")
        packed.register_parameter("bias", nn.Parameter(bias, requires_grad=False))
    return packed


class FewerConfig(QuantizationConfigMixin):
    """`quantization_config` in a config.json with `"quant_method": "fewer"`."""

    def __init__(
        self,
        sites: dict[str, Any],
        version: int = VERSION,
        quant_method: str = "fewer",
        widths: dict[str, int] | None = None,
    ) -> None:
        if version > VERSION:
            raise ValueError(
                f"this model was saved in format {version} and this fewer reads up to {VERSION}: update it"
            )
        self.quant_method, self.version, self.sites, self.widths = quant_method, version, sites, widths or {}


class FewerQuantizer(HfQuantizer):
    """Puts empty packed modules in place before transformers fills them."""

    requires_calibration = True  # only what was packed before can be opened

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        resize(model, self.quantization_config.widths)
        remember(model, self.quantization_config.widths)
        here = dict(model.named_modules())
        told = self.quantization_config.sites
        for name in told:
            if name not in here:
                raise ValueError(f"quantization_config names {name!r}, which {type(model).__name__} does not have")
        swap(model, {name: empty(name, site, here[name]) for name, site in told.items()})
        return model

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True


if "fewer" not in AUTO_QUANTIZER_MAPPING:
    register_quantizer("fewer")(FewerQuantizer)
if "fewer" not in AUTO_QUANTIZATION_CONFIG_MAPPING:
    register_quantization_config("fewer")(FewerConfig)
