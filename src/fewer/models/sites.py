"""Every linear map of a model as a `Site` with a role: fused projections in parts, stacked experts one by one."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from fewer.core.site import Site

from .blocks import is_map, stacks
from .experts import expert_sites
from .roles import roles
from .where import Owner, matching

# Rows in an order that no rule here describes: left whole, with the role "other".
UNCUT = ("CodeGenAttention",)


def sites(model: nn.Module, where: str = "*") -> list[Site]:
    """The linear maps of `model` that `where` names, in the model's own order; a tied pair is one site, its first owner's.

    `where`: comma separated patterns; each is a role (`q k v o gate up down router embed head other`), a group
    (`attention`: q k v o, `mlp`: gate up down, `experts`: all maps of experts), or a glob on names, in which `*` and
    `?` are wild and brackets are plain. A glob without the part finds all parts; a leading `!` takes away.

    Without being named, only maps inside the blocks are found (in a plain torch module: every `nn.Linear`): embeddings,
    heads, poolers and routers answer to their role, or to a glob that finds nothing else (`lm_head`, `*.mlp.gate`).

    Raises `ValueError` for a pattern that finds nothing, with the nearest words that would.

    >>> [s.name for s in sites(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))]
    ['0', '2']
    """
    found: list[tuple] = []
    reserved: list[tuple] = []
    owners: dict[tuple, Owner] = {}
    foreign = is_theirs(model)
    homes = stacks(model)
    for site in every_site(model):
        key = (id(_parameter(site)), site.index, site.name.rpartition("[")[2] if "[" in site.name else "")
        if key in owners:  # tied: the first owner also answers to this name and role
            owners[key][1].append(site)
            continue
        layer = _layer(site.name, homes)
        owners[key] = (replace(site, layer=layer), [])
        plain = site.role not in ("embed", "router") and (layer is not None or not foreign)
        (found if plain else reserved).append(key)
    return matching(where, [owners[k] for k in found], [owners[k] for k in reserved], order=list(owners.values()))


def unseen(model: nn.Module) -> list[str]:
    """Weights of two or more dimensions inside the blocks that are no site: convolutions, storage nobody described yet.

    >>> unseen(nn.Sequential(nn.Linear(4, 4)))
    []
    """
    seen, homes = {id(_parameter(site)) for site in every_site(model)}, tuple(f"{name}." for name in stacks(model))
    inside = [
        (n, p) for n, p in model.named_parameters() if n.startswith(homes) and p.ndim > 1 and not n.endswith("bias")
    ]
    return [name for name, p in inside if id(p) not in seen]


def is_theirs(model: nn.Module) -> bool:
    """Whether transformers made it: then its models have been imported, which takes seconds, and is not done here."""
    theirs = sys.modules.get("transformers.modeling_utils")
    return theirs is not None and isinstance(model, theirs.PreTrainedModel)


def _parameter(site: Site) -> object:
    return site.module._parameters.get(site.param, site.module)


def _layer(name: str, homes: dict[str, nn.ModuleList]) -> int | None:
    home = next((h for h in homes if name.startswith(h + ".")), None)
    return None if home is None else int(name[len(home) + 1 :].partition(".")[0])


def every_site(model: nn.Module) -> Iterator[Site]:
    """All linear maps with their roles, tied ones under each of their names, layers not yet told."""
    parents = dict(model.named_modules())
    words = model.get_input_embeddings() if is_theirs(model) else None
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            if words is None or module is words:  # positions and token types are no maps from words
                yield Site(name, module, "embed", inputs=_no_input)
        elif is_map(module):
            parent = parents[name.rpartition(".")[0]]
            yield from _cut(name, module, parent)
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield from _multihead(name, module)
        else:
            yield from expert_sites(name, module)


def _no_input(module: nn.Module, args: tuple, kwargs: dict) -> Tensor:
    raise ValueError("an embedding is given words, not vectors: use a method that needs no data, or leave `embed` out")


def _cut(name: str, module: nn.Module, parent: nn.Module) -> Iterator[Site]:
    """One site, or one for each part of a fused projection."""
    found = roles(name)
    if type(module).__name__.endswith("Router") or (name.endswith(".gate") and hasattr(parent, "experts")):
        found = ("router",)
    transposed = type(module).__name__ == "Conv1D"
    whole = Site(name, module, found[0], transposed=transposed)
    parts = None if len(found) == 1 or type(parent).__name__ in UNCUT else _parts(name, whole, parent, found)
    if parts is None:
        yield whole if len(found) == 1 else replace(whole, role="other")
        return
    for role, part in zip(found, parts, strict=True):
        yield replace(whole, name=f"{name}[{role}]", role=role, part=part)


def _parts(name: str, whole: Site, parent: nn.Module, found: tuple[str, ...]) -> "list[slice | Tensor] | None":
    """Which output rows belong to which role; None if that cannot be told."""
    rows = whole.shape[0]
    if len(found) == 2:
        return [slice(0, rows // 2), slice(rows // 2, rows)] if rows % 2 == 0 else None
    queries = _width_of_output(parent, rows // 3)
    keys, odd = divmod(rows - queries, 2)
    if odd or keys <= 0:
        return None
    by_head = name.endswith("query_key_value") or getattr(parent, "multi_query", True) is False
    if not by_head:
        return [slice(0, queries), slice(queries, queries + keys), slice(queries + keys, rows)]
    head = getattr(parent, "head_dim", None) or getattr(parent, "head_size", None)
    return None if head is None else _by_group(rows, queries, keys, head)


def _by_group(rows: int, queries: int, keys: int, head: int) -> "list[slice | Tensor]":
    """Megatron's order: for each key head its queries, its key, its value (GPT-NeoX, BLOOM, Falcon)."""
    groups = keys // head
    place = torch.arange(rows).reshape(groups, queries // head // groups + 2, head)
    return [place[:, :-2].reshape(-1), place[:, -2].reshape(-1), place[:, -1].reshape(-1)]


def _width_of_output(parent: nn.Module, otherwise: int) -> int:
    """The output projection beside a fused one reads as many values as there are queries."""
    for name, module in parent.named_children():
        if is_map(module) and roles("attn." + name) == ("o",):
            return Site(name, module, transposed=type(module).__name__ == "Conv1D").shape[1]
    return otherwise


def _argument(place: int, name: str) -> Callable[[nn.Module, tuple, dict], Tensor]:
    return lambda module, args, kwargs: args[place] if len(args) > place else kwargs[name]


def _multihead(name: str, module: nn.MultiheadAttention) -> Iterator[Site]:
    rows = module.embed_dim
    whole = Site(f"{name}.in_proj_weight", module, param="in_proj_weight")
    for i, (role, word) in enumerate([("q", "query"), ("k", "key"), ("v", "value")]):
        part = slice(i * rows, (i + 1) * rows)
        yield replace(whole, name=f"{whole.name}[{role}]", role=role, part=part, inputs=_argument(i, word))
