"""The repeated layers of a model, in order."""

from torch import nn


def is_map(module: nn.Module) -> bool:
    """Whether the module is a linear map: `nn.Linear`, transformers' `Conv1D`, a router, or one of our packed ones."""
    if isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "SparseLinear"):
        return True
    return type(module).__name__.endswith("Router") and isinstance(getattr(module, "weight", None), nn.Parameter)


def stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Every outermost `nn.ModuleList` of composite modules that hold linear maps, by name."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and any(_holds(block) for block in module):
            found[name] = module
    return found


def _holds(block: nn.Module) -> bool:
    return not is_map(block) and any(is_map(m) for m in block.modules())


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The repeated layers in order, as `(name, module)`; empty for a model without them.

    Found by structure: of all outermost `nn.ModuleList`s of composite modules that hold linear maps, the one with the
    most weights (the decoder of an encoder-decoder).

    >>> blocks(nn.Sequential(nn.Linear(2, 2)))
    []
    """
    every = stacks(model)
    if not every:
        return []
    name = max(every, key=lambda n: sum(p.numel() for p in every[n].parameters()))
    return [(f"{name}.{i}", block) for i, block in enumerate(every[name])]
