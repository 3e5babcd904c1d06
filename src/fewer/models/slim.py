"""A model without some of its units: smaller modules in the places of the old ones, and back."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewer.core import Group, Site

from .groups import every_group
from .packed import restore, swap

OUT, IN = ("out_features", "nf"), ("in_features", "nx")  # what nn.Linear and Conv1D call their sizes
# What attention modules remember of how many heads they have, or of how wide all heads are together.
COUNTS = ("num_heads", "num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads", "split_size")


def shrink(model: nn.Module, kept: Mapping[str, Tensor]) -> Callable[[], None]:
    """Take the units away that are False in `kept` (by group name, `[units]`), and return what puts them back.

    Works on the meta device too, where which units stay does not matter, only how many. The modules that were there
    are untouched. ValueError for a group that the model does not have.
    """
    with torch.device("cpu"):  # also while a model is being built on the meta device
        return _shrink(model, kept, {g.name: g for g in every_group(model)} if kept else {})


def _shrink(model: nn.Module, kept: Mapping[str, Tensor], here: Mapping[str, Group]) -> Callable[[], None]:
    for name, keep in kept.items():
        if name not in here:
            raise ValueError(f"{type(model).__name__} has no group {name!r} of maps that could be narrower")
        if len(keep) != here[name].units:
            raise ValueError(f"{name} has {here[name].units} units, not {len(keep)}")
    found = [here[name] for name, keep in kept.items() if not bool(keep.all())]
    before = swap(model, _narrower(model, found, kept))
    remembered = [_recount(model, g, kept[g.name]) for g in found if g.reader.role == "o"]

    def back() -> None:
        restore(model, before)
        for home, old in remembered:
            vars(home).update(old)

    return back


def first(units: int, count: int) -> Tensor:
    """Keep the first `count`: a shape to be filled."""
    return torch.arange(units) < count


def resize(model: nn.Module, widths: Mapping[str, int]) -> Callable[[], None]:
    """Give groups the sizes of a slimmed model, for weights that are still to come; returns what undoes it."""
    with torch.device("cpu"):
        units = {g.name: g.units for g in every_group(model)} if widths else {}
        kept = {name: first(units.get(name, n), n) for name, n in widths.items()}
    return shrink(model, kept)


def _narrower(model: nn.Module, found: Sequence[Group], kept: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """For each module that loses rows or columns, one without them."""
    names = {id(module): name for name, module in model.named_modules()}
    rows: dict[str, Tensor] = {}
    cols: dict[str, Tensor] = {}
    for group in found:
        for site in group.writers:
            stay = rows.setdefault(names[id(site.module)], torch.ones(_shape(site)[0], dtype=torch.bool))
            mine = torch.arange(len(stay)) if site.part is None else torch.arange(len(stay))[site.part]
            stay[mine] = kept[group.name].cpu().repeat_interleave(len(mine) // group.units)
        width = group.reader.shape[1] // group.units
        cols[names[id(group.reader.module)]] = kept[group.name].cpu().repeat_interleave(width)
    every = dict.fromkeys([*rows, *cols])
    chosen = [{name: keep.nonzero().flatten() for name, keep in side.items()} for side in (rows, cols)]
    return {name: _cut(model.get_submodule(name), *(side.get(name) for side in chosen)) for name in every}


def _shape(site: Site) -> tuple[int, int]:
    return Site(site.name, site.module, transposed=site.transposed).shape


def _cut(module: nn.Module, rows: Tensor | None, cols: Tensor | None) -> nn.Module:
    """A copy of a linear module with only those rows (outputs) and columns (inputs)."""
    new: Any = copy.copy(module)
    new._parameters = dict(module._parameters)
    turned = type(module).__name__ == "Conv1D"
    w = module.weight.detach().mT if turned else module.weight.detach()  # type: ignore[operator]
    w = w if rows is None else w[rows.to(w.device)]
    w = w if cols is None else w[:, cols.to(w.device)]
    new.weight = nn.Parameter((w.mT if turned else w).contiguous(), requires_grad=module.weight.requires_grad)
    if rows is not None and getattr(module, "bias", None) is not None:
        bias: Any = module.bias
        new.bias = nn.Parameter(bias.detach()[rows.to(w.device)], requires_grad=bias.requires_grad)
    for words, size in ((OUT, w.shape[0]), (IN, w.shape[1])):
        vars(new).update({word: size for word in words if word in vars(module)})
    return new


def _recount(model: nn.Module, group: Group, keep: Tensor) -> tuple[nn.Module, dict[str, Any]]:
    """Let an attention module know how many heads it has left; what it remembered before is returned."""
    home: Any = model.get_submodule(group.writers[0].name.partition("[")[0].rpartition(".")[0])
    stays, whole = int(keep.sum()), group.units
    new = {word: n * stays // whole for word in COUNTS if isinstance(n := vars(home).get(word), int)}
    if any(s.part is not None for s in group.writers) and hasattr(vars(home).get("config"), "num_attention_heads"):
        new["config"] = copy.copy(home.config)  # Phi-3 asks its configuration where the queries end
        new["config"].num_attention_heads = home.config.num_attention_heads * stays // whole
    old = {word: vars(home)[word] for word in new}
    vars(home).update(new)
    return home, old
