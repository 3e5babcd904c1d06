"""What compressed-tensors writes in config.json about a sparse model, read and written."""

from collections.abc import Collection
from typing import Any

from torch import nn

from .foreign import Written

METHOD = "compressed-tensors"
KEYS = ("quantization_config", "compression_config", "sparsity_config")  # now, before, and long before
BESIDE = {"quant_method", "version", "sparsity_config", "transform_config"}  # what does not speak of quantising


def told(config: Any) -> dict[str, dict[str, Any]]:
    """What compressed-tensors says in a model's config, by key; empty for any other model.

    The tensors tell by their names how they are stored. `ValueError` for a model that is quantised too.
    """
    found = {key: value for key in KEYS if isinstance(value := getattr(config, key, None), dict)}
    if found.get(KEYS[0], {}).get("quant_method", METHOD) != METHOD:
        return {}
    for key, value in found.items():
        if key != "sparsity_config" and (more := set(value) - BESIDE):
            raise ValueError(
                f"its weights are quantised too ({key}: {', '.join(sorted(more)[:3])}); only sparse ones are read: save "
                "it dense with the library that quantised it"
            )
    return found


def forget(config: Any) -> None:
    """Take it out: what is opened is an ordinary model."""
    for key in told(config):
        delattr(config, key)


def describe(model: nn.Module, way: Written, packed: Collection[str], share: float) -> dict[str, Any]:
    """The `quantization_config` of a model whose maps `packed` (names of modules) are stored in `way`.

    `share` is how much of the model is zero. All `Linear` modules are targets there, unless they are to be ignored.
    """
    plain = [n for n, m in model.named_modules() if type(m).__name__ == "Linear" and n not in packed]
    told = {"format": way.name, "sparsity_structure": way.structure, "global_sparsity": share}
    told |= {"targets": ["Linear"], "ignore": plain, "registry_requires_subclass": False}
    return {"quant_method": METHOD, "version": "0.14.0", "sparsity_config": told}
