"""Experts that transformers stacks into 3-D parameters: one site for each expert and map, with its true input."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewer.core.site import Site

from .roles import roles


def expert_sites(name: str, module: nn.Module) -> Iterator[Site]:
    """The maps of a module that keeps all its experts in 3-D parameters; none for any other module."""
    stacked = {n: p for n, p in module.named_parameters(recurse=False) if p.ndim == 3 and roles(n) != ("other",)}
    if "down_proj" not in stacked or len(stacked) < 2:
        return
    into = next(p for n, p in stacked.items() if n != "down_proj")
    turned = _transposed(module, into, stacked["down_proj"])
    for param, tensor in stacked.items():
        found = roles(param)
        for e in range(len(tensor)):
            inputs = partial(_middle if found == ("down",) else _routed, expert=e, transposed=turned)
            site = Site(f"{name}.{param}[{e}]", module, found[0], None, param, e, None, turned, inputs)
            yield from [site] if len(found) == 1 else _halves(site, tensor.shape[2 if turned else 1])


def _halves(site: Site, rows: int) -> Iterator[Site]:
    mixed = not getattr(site.module, "is_concatenated", True)  # gpt-oss: a gate row, an up row, a gate row, ...
    parts = (slice(0, rows, 2), slice(1, rows, 2)) if mixed else (slice(0, rows // 2), slice(rows // 2, rows))
    for role, part in zip(("gate", "up"), parts, strict=True):
        yield replace(site, name=f"{site.name}[{role}]", role=role, part=part)


def _transposed(module: nn.Module, into: Tensor, down: Tensor) -> bool:
    """Whether experts are stored `[in, out]`: the module says so, or the width that both maps share does."""
    plain, turned = into.shape[2] == down.shape[1], into.shape[1] == down.shape[2]
    return turned and not plain if plain != turned else bool(getattr(module, "is_transposed", False))


def _argument(args: tuple, kwargs: dict[str, Any], place: int, *names: str) -> Tensor:
    return args[place] if len(args) > place else next(kwargs[n] for n in names if n in kwargs)


def _routed(module: Any, args: tuple, kwargs: dict[str, Any], expert: int, transposed: bool) -> Tensor:
    """The tokens that the router sent to this expert, in their order: `[tokens of the expert, in]`."""
    hidden = _argument(args, kwargs, 0, "hidden_states")
    if len(args) + len(kwargs) == 1:  # Llama 4 lays the tokens out by expert, zeros where it was not chosen
        return hidden.reshape(len(module.down_proj), -1, hidden.shape[-1])[expert]
    index = _argument(args, kwargs, 1, "top_k_index", "router_indices")
    chosen = (index.reshape(-1, index.shape[-1]) == expert).any(-1)
    return hidden.reshape(-1, hidden.shape[-1])[chosen]


def _middle(module: Any, args: tuple, kwargs: dict[str, Any], expert: int, transposed: bool) -> Tensor:
    """What the down map of this expert is given: act(gate) * up of its tokens, by the module's own rule."""
    x = _routed(module, args, kwargs, expert, transposed)

    def through(param: str) -> Tensor:
        w, bias = getattr(module, param)[expert], getattr(module, f"{param}_bias", None)
        return nn.functional.linear(x, w.mT if transposed else w, None if bias is None else bias[expert])

    with torch.no_grad():
        if hasattr(module, "gate_up_proj"):
            return _gated(module, through("gate_up_proj"))
        up = through("up_proj")
        return module.act_fn(through("gate_proj")) * up if hasattr(module, "gate_proj") else module.act_fn(up)


def _gated(module: Any, both: Tensor) -> Tensor:
    if hasattr(module, "_apply_gate"):
        return module._apply_gate(both)
    gate, up = both.chunk(2, dim=-1)
    return module.act_fn(gate) * up
